import { readFileSync } from "node:fs";
import type { SecureContextOptions } from "node:tls";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { ErrorInfoSchema, BadRequestSchema } from "@texture/auth/google/rpc/error_details_pb";
import { type AuthorizeRequestSchema, type AuthorizeService, Decision } from "@texture/auth/texture/auth/v1/authorize_service_pb";
import { type Client, Code, ConnectError, type Transport } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";

// README: begin
type Question = MessageInitShape<typeof AuthorizeRequestSchema>;

/** Says whether the holder of an API key may do this, and what a public API should answer with. No answer is a no. */
export async function ask(auth: Client<typeof AuthorizeService>, question: Question) {
  try {
    const answer = await auth.authorize(question, { timeoutMs: 1000 });
    if (answer.decision === Decision.ALLOW) return { allowed: true, http: 200 };
    if (answer.decision === Decision.DENY) return { allowed: false, http: answer.httpStatusCode };
  } catch {
    // Nothing was decided: log it, without the key.
  }
  return { allowed: false, http: 503 };
}
// README: end

/**
 * Makes connections that prove who calls by a key, by a certificate or by neither: NAME_ADDRESS, NAME_KEY_FILE,
 * NAME_CERTIFICATE and NAME_PRIVATE_KEY, the last three of which may be missing.
 */
export function transportFrom(name: string): Transport {
  const tls: SecureContextOptions = { ca: readFileSync(setting("CA")) };
  const certificate = process.env[`${name}_CERTIFICATE`];
  if (certificate !== undefined) {
    tls.cert = readFileSync(certificate);
    tls.key = readFileSync(setting(`${name}_PRIVATE_KEY`));
  }
  const keyFile = process.env[`${name}_KEY_FILE`];
  const key = keyFile === undefined ? undefined : readFileSync(keyFile, "utf8").trim();
  return createGrpcTransport({
    baseUrl: `https://${setting(`${name}_ADDRESS`)}`,
    nodeOptions: tls,
    interceptors: [
      (next) => (request) => {
        if (key !== undefined) request.header.set("authorization", `Bearer ${key}`);
        return next(request);
      },
    ],
  });
}

export function setting(name: string): string {
  const value = process.env[name];
  if (value === undefined) throw new Error(`${name} is not set`);
  return value;
}

/** An error as a caller can act on it: the reason is empty where the service itself said nothing. */
export interface Failure {
  code: string;
  reason: string;
  metadata: Record<string, string>;
  fields: string[];
}

export function failureOf(cause: unknown): Failure {
  const error = ConnectError.from(cause);
  const [info] = error.findDetails(ErrorInfoSchema);
  if (info !== undefined && info.domain !== "auth.texture") throw new Error(`an error of the domain ${info.domain}`);
  return {
    // As the service's documents write them.
    code: Code[error.code]!.replace(/(?<=[a-z])(?=[A-Z])/g, "_").toUpperCase(),
    reason: info?.reason ?? "",
    metadata: info?.metadata ?? {},
    fields: error.findDetails(BadRequestSchema).flatMap((bad) => bad.fieldViolations.map((violation) => violation.field)),
  };
}
