import { setTimeout as pause } from "node:timers/promises";
import { createInterface } from "node:readline";
import { createClient } from "@connectrpc/connect";
import { AuthorizeService, Decision } from "@texture/auth/texture/auth/v1/authorize_service_pb";
import { ask, failureOf, setting, transportFrom } from "./ask.js";

/** How long a question may take while something is wrong, in milliseconds. */
const IMPATIENT = 1000;
/** How long the service may take to be there again, in milliseconds. */
const PATIENT = 30_000;

/**
 * Asks while something is wrong. Of what goes wrong in the course of time the other side decides when: it is told READY,
 * and answers with a line.
 */
export async function playFailure(name: string): Promise<void> {
  const auth = createClient(AuthorizeService, transportFrom("CALLER"));
  const question = { apiKey: setting("API_KEY"), permission: "devices:list" };
  const during = process.env["DURING"] !== undefined;
  if (during) {
    await auth.authorize(question, { timeoutMs: PATIENT });
    await turn();
  }
  const answer = await auth.authorize(question, { timeoutMs: IMPATIENT }).catch(failureOf);
  if ("decision" in answer) throw new Error(`${name}: it was answered: ${Decision[answer.decision]}`);
  console.log("FAILURE", name, answer.code, answer.reason || "-");
  const { allowed, http } = await ask(auth, question);
  if (allowed || http !== 503) throw new Error(`${name}: the helper said ${allowed}, ${http}`);
  if (!during) return;
  await turn();
  for (const end = Date.now() + PATIENT; ; await pause(50)) {
    try {
      await auth.authorize(question, { timeoutMs: IMPATIENT });
      console.log("RECOVERED", name);
      return;
    } catch (error) {
      if (Date.now() > end) throw error;
    }
  }
}

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

async function turn(): Promise<void> {
  console.log("READY");
  if ((await lines.next()).done) throw new Error("the other side is gone");
}
