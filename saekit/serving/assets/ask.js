// Questions to the server. A full queue says when to come again; that is waited for, a few times.

const TRIES = 6;

async function ask(path, { body, signal, waiting } = {}) {
  const response = await answered(path, { body, signal, waiting });
  return response.json();
}

// Lines of JSON, each given to `take` as it arrives.
async function askLines(path, take, { body, signal, waiting } = {}) {
  const response = await answered(path, { body, signal, waiting });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    lines.filter(Boolean).map((line) => JSON.parse(line)).forEach(take);
  }
}

async function answered(path, { body, signal, waiting }) {
  for (let tries = 1; ; tries += 1) {
    const response = await sent(path, body, signal);
    if (response.ok) return response;
    const seconds = Number(response.headers.get("Retry-After"));
    if (response.status !== 503 || !seconds || tries === TRIES) throw new Error(await problem(response));
    waiting?.(`The model is busy; trying again in ${seconds} s.`);
    await pause(1000 * seconds, signal);
  }
}

async function sent(path, body, signal) {
  const post = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  try {
    return await fetch(path, body === undefined ? { signal } : { ...post, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Was it stopped?");
  }
}

async function problem(response) {
  try {
    const { error, hint } = await response.json();
    return hint ? `${error} (${hint})` : error;
  } catch {
    return `The server answered ${response.status}.`;
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
  });
}
