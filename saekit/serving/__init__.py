"""The local server: one dictionary and its model in memory, and a page that asks them. See `run`
for the verb, `worker` for the queue, `guard` for who may ask."""
