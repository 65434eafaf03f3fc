// Server-sent events over fetch: EventSource can't send the header with the key.

const TIMEOUT_MS = 6000; // without data

/** Calls on(name, data) per event until `signal` aborts. Throws when the stream ends, with {status} if refused. */
export async function listen(url, key, on, signal) {
  const controller = new AbortController();
  const end = () => controller.abort();
  signal.addEventListener("abort", end);
  let timer = setTimeout(end, TIMEOUT_MS);
  try {
    const answer = await fetch(url, { headers: { authorization: `Bearer ${key}` }, signal: controller.signal, cache: "no-store" });
    if (!answer.ok) throw Object.assign(new Error(`status ${answer.status}`), { status: answer.status });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new Error("the stream ended");
      clearTimeout(timer);
      timer = setTimeout(end, TIMEOUT_MS);
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
