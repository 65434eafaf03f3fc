// Server-sent events over fetch: EventSource can't send a header, and a key has no place in an address.

const PATIENCE_MS = 6000; // without a word

/** Calls on(name, data) for each event until `signal` aborts. Throws where it ends; {status} where it is refused. */
export async function listen(url, key, on, signal) {
  const watch = new AbortController();
  const end = () => watch.abort();
  signal.addEventListener("abort", end);
  let timer = setTimeout(end, PATIENCE_MS);
  try {
    const answer = await fetch(url, { headers: { authorization: `Bearer ${key}` }, signal: watch.signal, cache: "no-store" });
    if (!answer.ok) throw Object.assign(new Error(`status ${answer.status}`), { status: answer.status });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new Error("the stream ended");
      clearTimeout(timer);
      timer = setTimeout(end, PATIENCE_MS);
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        const [first, second] = event.split("\n");
        on(first.slice("event: ".length), second.slice("data: ".length));
      }
    }
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", end);
  }
}
