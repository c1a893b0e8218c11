import { setTimeout as pause } from "node:timers/promises";
import { isDeepStrictEqual } from "node:util";
import { durationMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import { type Client, createClient } from "@connectrpc/connect";
import {
  type AuthorizeResponse,
  AuthorizeService,
  Decision,
  Reason,
} from "@texture/auth/texture/auth/v1/authorize_service_pb";
import { CallerService } from "@texture/auth/texture/auth/v1/caller_service_pb";
import { Role } from "@texture/auth/texture/auth/v1/caller_pb";
import { ConnectService } from "@texture/auth/texture/auth/v1/connect_service_pb";
import { DeviceService } from "@texture/auth/texture/auth/v1/device_service_pb";
import { ErrorReason } from "@texture/auth/texture/auth/v1/error_pb";
import { EventService } from "@texture/auth/texture/auth/v1/event_service_pb";
import { KeyKind } from "@texture/auth/texture/auth/v1/key_pb";
import { KeyService } from "@texture/auth/texture/auth/v1/key_service_pb";
import { UsageService } from "@texture/auth/texture/auth/v1/usage_service_pb";
import { Environment } from "@texture/auth/texture/auth/v1/workspace_pb";
import { WorkspaceService } from "@texture/auth/texture/auth/v1/workspace_service_pb";
import { ask, type Failure, failureOf, setting, transportFrom } from "./ask.js";

const REDIRECT_URI = "https://app.acme.example/connected?lang=en";
const BROWSER = {
  clientIp: "198.51.100.7",
  origin: "https://app.acme.example",
  secFetchSite: "cross-site",
  secFetchMode: "cors",
  userAgent:
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36",
};
const HOUR = { seconds: 3600n };

type Expected = [reason: Reason, http: number];
const PERMITTED: Expected = [Reason.PERMITTED, 200];
const NOT_GRANTED: Expected = [Reason.PERMISSION_NOT_GRANTED, 403];
const NOT_PERMITTED: Expected = [Reason.DEVICE_NOT_PERMITTED, 403];

/** Played by two callers: an operator with a key, and a device API with a certificate. */
export class Story {
  private readonly workspace: string;
  private readonly operator = transportFrom("OPERATOR");
  private readonly deviceApi = transportFrom("CALLER");
  private readonly keys = createClient(KeyService, this.operator);
  private readonly workspaces = createClient(WorkspaceService, this.operator);
  private readonly connect = createClient(ConnectService, this.operator);
  private readonly devices = createClient(DeviceService, this.operator);
  private readonly auth: Client<typeof AuthorizeService> = createClient(AuthorizeService, this.deviceApi);
  private lines = 0;

  constructor(private readonly name: string) {
    this.workspace = `acme-${name}`;
  }

  async play(): Promise<void> {
    await this.callers();
    await this.workspaceAndDevices();
    const backend = await this.serverKeys();
    const scoped = await this.connectFlow();
    await this.scopedKey(scoped);
    await this.rotation();
    await this.expiry();
    await this.batch(backend, scoped);
    await this.leak();
    await this.noKeys();
    console.log(`${this.lines} lines, none wrong`);
  }

  /** Ends the program at the first thing that is not as it should be. */
  private check(what: string, found: unknown, expected: unknown): void {
    if (!isDeepStrictEqual(found, expected)) throw new Error(`WRONG  ${what}: ${found}, expected ${expected}`);
    this.lines++;
    console.log("ok    ", what, found);
  }

  private async question(
    who: string,
    apiKey: string,
    permission: string,
    deviceId: string,
    expected: Expected,
    context?: typeof BROWSER,
  ): Promise<AuthorizeResponse> {
    const answer = await this.auth.authorize({ apiKey, permission, deviceId, ...(context && { context }) });
    const what = `${who}: ${permission} ${deviceId}`;
    const shown = (reason: Reason, http: number) => `${Reason[reason]} ${http}`;
    this.check(what, shown(answer.reason, answer.httpStatusCode), shown(...expected));
    const decision = expected === PERMITTED ? Decision.ALLOW : Decision.DENY;
    if (answer.decision !== decision) throw new Error(`WRONG  ${what}: ${Decision[answer.decision]}`);
    if (expected === NOT_GRANTED) this.check(`${who}: what is missing`, answer.missingPermission, permission);
    return answer;
  }

  private async refused(what: string, call: Promise<unknown>, expected: string): Promise<Failure> {
    const found = await call.then(() => null, failureOf);
    if (found === null) throw new Error(`WRONG  ${what}: it was done`);
    this.check(what, `${found.code} ${found.reason}`, expected);
    return found;
  }

  /** Names a device; ids are the whole service's. */
  private device(id: string): string {
    return `${id}-${this.name}`;
  }

  private async serverKey(displayName: string): Promise<{ apiKey: string; keyId: string }> {
    const made = await this.keys.createKey({ workspaceId: this.workspace, kind: KeyKind.SERVER, displayName });
    if (made.key === undefined) throw new Error("WRONG  a key without a key");
    return { apiKey: made.apiKey, keyId: made.key.keyId };
  }

  private async callers(): Promise<void> {
    await this.refused(
      "a certificate that names nobody",
      this.auth.authorize({ permission: "devices:list" }),
      "UNAUTHENTICATED CALLER_CERTIFICATE_UNKNOWN",
    );
    await createClient(CallerService, this.operator).createCaller({
      callerId: `device-api-${this.name}`,
      roles: [Role.AUTHORIZER],
      certificateNames: [setting("CERTIFICATE_NAME")],
      withoutKey: true,
    });
    const found = await this.refused(
      "a caller without the role",
      createClient(WorkspaceService, this.deviceApi).listWorkspaces({}),
      "PERMISSION_DENIED CALLER_ROLE_MISSING",
    );
    this.check("  is told the roles", "roles" in found.metadata, true);
  }

  private async workspaceAndDevices(): Promise<void> {
    const request = {
      workspaceId: this.workspace,
      displayName: "Acme Energy",
      environment: Environment.SANDBOX,
    };
    await this.workspaces.createWorkspace(request);
    const again = this.workspaces.createWorkspace(request);
    await this.refused("a workspace again", again, "ALREADY_EXISTS WORKSPACE_EXISTS");
    const found = await this.refused(
      "a workspace with a bad id",
      this.workspaces.createWorkspace({ ...request, workspaceId: "V" }),
      "INVALID_ARGUMENT FIELD_INVALID",
    );
    this.check("  names the field", found.fields, ["workspace_id"]);
    await this.devices.registerDevices({
      workspaceId: this.workspace,
      devices: [{ deviceId: this.device("charger-9"), referenceId: "user-9", manufacturer: "voltway" }],
    });
  }

  private async serverKeys(): Promise<string> {
    const nightly = await this.serverKey("Nightly report");
    const { apiKey: backend } = await this.serverKey("Backend");
    const charger = this.device("charger-9");
    await this.question("server key 'Nightly report'", nightly.apiKey, "devices:read", charger, PERMITTED);
    await this.keys.revokeKey({ keyId: nightly.keyId, reason: "laptop lost" });
    await this.question("  the same, revoked", nightly.apiKey, "devices:read", charger, [Reason.KEY_REVOKED, 401]);
    await this.question("server key 'Backend'", backend, "devices:read", charger, PERMITTED);
    const other = this.device("charger-0");
    await this.question("server key 'Backend'", backend, "devices:read", other, [Reason.DEVICE_NOT_FOUND, 404]);
    const { deviceScope } = await this.question("server key 'Backend'", backend, "devices:list", "", PERMITTED);
    const scope = `${deviceScope?.workspaceId}/${deviceScope?.referenceId}`;
    this.check("  the list may hold all of the workspace", scope, `${this.workspace}/`);
    const question = { permission: "devices:command", deviceId: charger };
    const yes = await ask(this.auth, { ...question, apiKey: backend });
    this.check("  the helper of ten lines", yes, { allowed: true, http: 200 });
    const no = await ask(this.auth, { ...question, apiKey: nightly.apiKey });
    this.check("  and its no", no, { allowed: false, http: 401 });
    const { apiKey: leaked } = await this.serverKey("Leaked");
    const inBrowser = await ask(this.auth, { ...question, apiKey: leaked, context: BROWSER });
    this.check("  and to a browser", inBrowser, { allowed: false, http: 403 });
    return backend;
  }

  private async connectFlow(): Promise<string> {
    const who = "connect key 'Website'";
    const { apiKey } = await this.keys.createKey({
      workspaceId: this.workspace,
      kind: KeyKind.CONNECT,
      displayName: "Website",
      redirectUris: [REDIRECT_URI],
    });
    for (const permission of ["devices:list", "keys:manage", "workspace:configure"])
      await this.question(who, apiKey, permission, "", NOT_GRANTED);
    for (const permission of ["devices:read", "devices:command"])
      await this.question(who, apiKey, permission, this.device("charger-9"), NOT_GRANTED);
    await this.question(who, apiKey, "connect_links:create", "", PERMITTED, BROWSER);
    await this.refused(
      "a link in somebody else's name",
      this.connect.createConnectLink({ apiKey, redirectUri: REDIRECT_URI, referenceId: "user-9" }),
      "PERMISSION_DENIED REFERENCE_ID_NOT_PERMITTED",
    );
    const { linkToken } = await this.connect.createConnectLink({
      apiKey,
      redirectUri: REDIRECT_URI,
      clientState: "cart-17",
    });
    const completion = {
      linkToken,
      devices: [{ deviceId: this.device("battery-1"), manufacturer: "heliovolt" }],
    };
    const { redirectUri, scopedApiKey } = await this.connect.completeConnectLink(completion);
    const query = Object.fromEntries(new URL(redirectUri).searchParams);
    const expected = { lang: "en", texture_scoped_key: scopedApiKey, client_state: "cart-17" };
    if (!isDeepStrictEqual(query, expected)) throw new Error("WRONG  where the end user is sent");
    await this.refused(
      "a link completed again",
      this.connect.completeConnectLink(completion),
      "FAILED_PRECONDITION CONNECT_LINK_COMPLETED",
    );
    return scopedApiKey;
  }

  private async scopedKey(key: string): Promise<void> {
    const who = "scoped key of the end user";
    const battery = this.device("battery-1");
    await this.question(who, key, "devices:read", battery, PERMITTED);
    await this.question(who, key, "devices:command", battery, PERMITTED);
    await this.question(who, key, "devices:read", this.device("charger-9"), NOT_PERMITTED);
    await this.question(who, key, "devices:read", "no-such-device", NOT_PERMITTED);
    await this.question(who, key, "connect_links:create", "", NOT_GRANTED);
    const { deviceScope } = await this.question(who, key, "devices:list", "", PERMITTED);
    const listed = await this.devices.listDevices({
      workspaceId: deviceScope?.workspaceId ?? "",
      referenceId: deviceScope?.referenceId ?? "",
    });
    this.check("  a list with that scope", listed.devices.map((device) => device.deviceId), [battery]);
  }

  private async rotation(): Promise<void> {
    const old = await this.serverKey("Rotated");
    const rotated = await this.keys.rotateKey({ keyId: old.keyId, overlap: HOUR });
    await this.question("rotated key, old secret", old.apiKey, "devices:list", "", PERMITTED);
    await this.question("rotated key, new secret", rotated.apiKey, "devices:list", "", PERMITTED);
    await this.refused(
      "another rotation meanwhile",
      this.keys.rotateKey({ keyId: old.keyId, overlap: HOUR }),
      "FAILED_PRECONDITION ROTATION_IN_PROGRESS",
    );
    await this.keys.retireGeneration({ keyId: old.keyId, generation: 1, force: true });
    await this.question("  old, ended", old.apiKey, "devices:list", "", [Reason.KEY_RETIRED, 401]);
    await this.question("  new", rotated.apiKey, "devices:list", "", PERMITTED);
  }

  private async batch(backend: string, scoped: string): Promise<void> {
    const deviceId = this.device("charger-9");
    const { answers } = await this.auth.batchAuthorize({
      questions: [
        { apiKey: backend, permission: "devices:read", deviceId },
        { apiKey: scoped, permission: "devices:read", deviceId },
        { apiKey: backend, permission: "devices:melt", deviceId },
      ],
    });
    const results = answers.map(({ result }) => {
      if (result.case === "answer") return Reason[result.value.reason];
      return result.case === "error" ? ErrorReason[result.value.reason] : "nothing";
    });
    this.check("a batch", results, ["PERMITTED", "DEVICE_NOT_PERMITTED", "FIELD_INVALID"]);
    const found = await this.refused(
      "a permission that is none",
      this.auth.authorize({ apiKey: backend, permission: "devices:melt" }),
      "INVALID_ARGUMENT FIELD_INVALID",
    );
    this.check("  names the field", found.fields, ["permission"]);
  }

  private async expiry(): Promise<void> {
    const ends = Date.now() + 3000;
    const { apiKey } = await this.keys.createKey({
      workspaceId: this.workspace,
      kind: KeyKind.SERVER,
      displayName: "Contractor",
      expireTime: timestampFromMs(ends),
    });
    const { validFor } = await this.question("server key, 3 s to live", apiKey, "devices:list", "", PERMITTED);
    this.check("  the answer says for how long", validFor !== undefined && durationMs(validFor) <= 3000, true);
    await pause(Math.max(0, ends - Date.now()) + 50);
    await this.question("  the same, later", apiKey, "devices:list", "", [Reason.KEY_EXPIRED, 401]);
  }

  /** A server key in a browser: it is denied and revoked, and what it did is known. */
  private async leak(): Promise<void> {
    const { apiKey, keyId } = await this.serverKey("Pasted into a web page");
    const who = "server key 'Pasted into a web page'";
    const charger = this.device("charger-9");
    await this.question(`${who}, in the backend`, apiKey, "devices:read", charger, PERMITTED);
    await this.question("  in a browser", apiKey, "devices:command", charger, [Reason.KEY_EXPOSED, 403], BROWSER);
    const events = createClient(EventService, this.operator);
    // Who is told by this knows that it has been dealt with, too: it is one change.
    this.check("operators are told", await this.told(events, keyId), true);
    await this.question("  in the backend, from then on", apiKey, "devices:read", charger, [Reason.KEY_REVOKED, 401]);
    const { touches } = await createClient(UsageService, this.operator).listKeyDevices({ keyId });
    this.check("the devices that it touched", touches.map((touch) => touch.deviceId), [charger]);
    const verified = await events.verifyChain({ workspaceId: this.workspace });
    this.check("nobody has rewritten the log", verified.broken, undefined);
  }

  private async told(events: Client<typeof EventService>, keyId: string): Promise<boolean> {
    const question = { workspaceId: this.workspace, types: ["key.exposed"] };
    for await (const { events: told } of events.watchEvents(question, { timeoutMs: 30_000 })) {
      if (told.some(({ event }) => event?.subjectId === keyId)) return true;
    }
    return false;
  }

  private async noKeys(): Promise<void> {
    const { apiKey } = await this.serverKey("Typed");
    const typed = `${apiKey.slice(0, -1)}_`;
    await this.question("a key with a typing error", typed, "devices:list", "", [Reason.KEY_MALFORMED, 401]);
    await this.question("no key", "", "devices:list", "", [Reason.KEY_MISSING, 401]);
  }
}
