// Plain words in the search box: every latent that has them in a name, a note, a label or a token, with how well they match.

const LETTER = /[\p{L}\p{N}]/u;
const [SOMEWHERE, BEGINNING, WHOLE, NUMBER] = [1, 2, 3, 4];

// WHOLE: a word of the text, BEGINNING: one begins so, SOMEWHERE: within one; 0: not at all. Both in lower case.
function matchLevel(text, needle) {
  let best = 0;
  for (let at = text.indexOf(needle); at >= 0 && best < WHOLE; at = text.indexOf(needle, at + 1)) {
    const begins = at === 0 || !LETTER.test(text[at - 1]) || !LETTER.test(needle[0]);
    const end = at + needle.length;
    const ends = end === text.length || !LETTER.test(text[end]) || !LETTER.test(needle.at(-1));
    best = Math.max(best, begins ? (ends ? WHOLE : BEGINNING) : SOMEWHERE);
  }
  return best;
}

// { level, share }: of each latent the best match (0: none), and the share of its rows, images or examples that have it, less what
// chance gives.
function wordMatches(needle) {
  const { latents } = catalog.meta;
  const found = { level: new Uint8Array(latents), share: new Float32Array(latents) };
  const add = (latent, level, share) => {
    if (level < found.level[latent] || (level === found.level[latent] && share <= found.share[latent])) return;
    found.level[latent] = level;
    found.share[latent] = share;
  };
  matchNumbers(needle, add);
  for (const [latent, name] of names) add(latent, matchLevel(name.toLowerCase(), needle), 1);
  for (const [latent, note] of notes) add(latent, matchLevel(note.toLowerCase(), needle), 1);
  for (let latent = 0; latent < latents; latent += 1) {
    const meaning = catalog.meanings[latent];
    if (meaning) add(latent, matchLevel(meaning[1].toLowerCase(), needle), meaning[2] / meaning[3]);
  }
  catalog.records.forEach((latent, record) => {
    if (view.search[record].includes(needle)) add(latent, Math.max(...view.search[record].split("\n").map((text) => matchLevel(text, needle))), 0);
  });
  for (const table of [known.tokens, known.labels, known.names]) if (table) matchTable(table, needle, add);
  return found;
}

// "81" finds 81, 810, 8123 and every token with 81 in it; "#81" only the numbers.
function matchNumbers(needle, add) {
  const digits = needle.startsWith("#") ? needle.slice(1) : needle;
  if (!/^\d+$/.test(digits)) return;
  for (let latent = 0; latent < catalog.meta.latents; latent += 1) {
    const text = String(latent);
    if (text.startsWith(digits)) add(latent, text === digits ? NUMBER : BEGINNING, 1);
  }
}

function matchTable(table, needle, add) {
  for (let word = 0; word < table.words.length; word += 1) {
    const level = table.lower[word].includes(needle) ? matchLevel(table.lower[word], needle) : 0;
    if (!level) continue;
    for (let pair = table.first[word]; pair < table.first[word + 1]; pair += 1) {
      const share = table.both[pair] / table.active[table.latents[pair]];
      add(table.latents[pair], level, Math.max(0, share - table.total[word] / table.places));
    }
  }
}
