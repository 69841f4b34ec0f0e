// What the server is asked, and how it may refuse.

export class Refusal extends Error {
  // line: what to tell; status: of HTTP, 0 where nothing answered; after: seconds to wait.
  constructor(line, status, after) {
    super(line);
    this.status = status;
    this.after = after;
  }

  // Whether the same question may be answered later.
  get passes() {
    return [0, 429, 503, 504].includes(this.status);
  }
}

export async function call(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server does not answer. Is it still running?", 0);
  }
  if (response.ok) return response.json();
  const said = await response.json().catch(() => ({}));
  const line = typeof said.detail === "string" ? said.detail : `The server said ${response.status}.`;
  const after = Number(response.headers.get("Retry-After")) || undefined;
  throw new Refusal(line, response.status, after);
}

export function send(path, value, options) {
  const headers = { "Content-Type": "application/json" };
  return call(path, { method: "POST", body: JSON.stringify(value), headers, ...options });
}

export function wait(milliseconds) {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}
