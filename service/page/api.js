// Talking to the server: one request, followed by its events.

export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export function headers(key) {
  return key ? { authorization: `Bearer ${key}` } : {};
}

async function words(answer) {
  try {
    const problem = await answer.json();
    return problem.detail || answer.statusText;
  } catch {
    return `the server answered ${answer.status} ${answer.statusText}`;
  }
}

export async function getJson(path, key) {
  const answer = await fetch(path, { headers: headers(key) });
  if (!answer.ok) throw new Refused(await words(answer), answer.status);
  return answer.json();
}

// The lines of each event of a stream. What has not ended stays in pieces: joined with each that comes, a picture of
// many megabytes would be copied thousands of times.
async function* blocks(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let pieces = [], held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const text = held + value;
    held = text.endsWith("\n") && !text.endsWith("\n\n") ? "\n" : ""; // the next may bring the second
    const parts = text.slice(0, text.length - held.length).split("\n\n");
    for (const part of parts.slice(0, -1)) {
      yield [...pieces, part].join("").split("\n");
      pieces = [];
    }
    pieces.push(parts.at(-1));
  }
}

// Ask, and call on[event](data) for each event until the last. Aborting goes away, which ends the work.
export async function follow(path, { body, type, key, signal }, on) {
  const answer = await fetch(path, {
    method: "POST",
    body,
    signal,
    headers: { accept: "text/event-stream", "content-type": type, ...headers(key) },
  });
  if (!answer.ok) throw new Refused(await words(answer), answer.status);
  let ended = false;
  for await (const lines of blocks(answer.body)) {
    const name = lines.find((line) => line.startsWith("event: "))?.slice(7);
    const data = lines.filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
    if (!name) continue;
    ended ||= ["done", "error", "cancelled"].includes(name);
    await on[name]?.(JSON.parse(data));
  }
  if (!ended) throw new Refused("the connection to the server was lost");
}
