// Requests to the server this page came from. Paths are relative, so that the page works behind a proxy's prefix.

const KEY = "expertmesh-api-key";

// A request was refused for want of a key, or of a right one.
export class KeyNeeded extends Error {}
// There was none: no server, or no way to it.
export class NoAnswer extends Error {}

const PATIENCE_MS = 10_000; // with an answer that is not streamed

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => sessionStorage.setItem(KEY, value),
};

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  const response = await fetch(path, { ...options, headers, cache: "no-store" }).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new NoAnswer("the server does not answer");
  });
  if (response.status === 401) throw new KeyNeeded();
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new Error(body?.error?.message ?? `the server answers ${response.status}`);
}

export async function get(path) {
  return (await ask(path, { signal: AbortSignal.timeout(PATIENCE_MS) })).json();
}

// Posts and yields the events of the streamed answer, parsed. Throws what goes wrong, also in the middle of it.
export async function* stream(path, body, signal) {
  const response = await ask(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error("the answer broke off");
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue;
      const data = line.slice("data: ".length).trim();
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}
