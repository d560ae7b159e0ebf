// What the page asks of the API, and what it is answered.

export interface Host {
  id: string;
  state: "active" | "draining" | "unreachable";
  capacity: number;
  containers: number | null;
  sessions: number | null;
  lease_margin_ms: number | null;
}

export interface Repl {
  id: string;
  spec: { command: string[]; port?: number | null };
  state: string;
  host: string | null;
  epoch: number | null;
}

/** An answer's JSON; throws what the API's refusal says. */
export async function ask<Answer>(path: string, method = "GET", body?: unknown): Promise<Answer> {
  const asked: RequestInit = { method };
  if (body !== undefined) {
    asked.body = JSON.stringify(body);
    asked.headers = { "content-type": "application/json" };
  }
  const response = await fetch(path, asked);
  const text = await response.text();
  if (!response.ok) {
    throw new Error(text.trim() || `${response.status} ${response.statusText}`);
  }
  return JSON.parse(text) as Answer;
}

export function why(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
