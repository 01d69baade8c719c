// A client of Fluoro for Node, made from the protos alone: read it, and take what you need.
//
//   node fluoro.mjs run PIPELINE FOLDER FILE…  uploads, submits, watches, writes the report
//   node fluoro.mjs watch JOB [CURSOR]         each message as a line of JSON; resumes at CURSOR
//   node fluoro.mjs list [FILTER]
//
// FLUORO_ENDPOINT, FLUORO_OWNER, FLUORO_TOKEN and FLUORO_CA_FILE are as for the command `fluoro`.

import { createHash, randomUUID } from "node:crypto";
import { createReadStream, readFileSync, realpathSync } from "node:fs";
import { mkdir, open, rename, stat } from "node:fs/promises";
import { join } from "node:path";
import { Readable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const PROTOS = process.env.FLUORO_PROTOS ?? fileURLToPath(new URL("../../protos", import.meta.url));
const SERVICES = ["job_service", "blob_service", "pipeline_service"];
const CHUNK_BYTES = 1024 * 1024;
const DEADLINE_MS = 30_000;
/** How long a gateway that has answered before may be away until a call fails. */
const PATIENCE_MS = 120_000;
/** The same for one that never has: its address may be wrong. */
const FIRST_PATIENCE_MS = 2_000;
/** Silence after which a watch counts as dead: there is a bookmark every 15 s. */
const IDLE_MS = 45_000;
const NOT_GOOD = ["STATE_FAILED", "STATE_CANCELLED"];

/** Names stay as in the protos, int64 are text, and `update` names what is set of its oneof. */
const LOADING = { keepCase: true, longs: String, enums: String, oneofs: true, arrays: true };

const { fluoro } = grpc.loadPackageDefinition(
  protoLoader.loadSync(SERVICES.map((name) => `fluoro/v1/${name}.proto`), {
    ...LOADING,
    includeDirs: [PROTOS],
  }),
);

const SILENT = Object.assign(new Error("nothing came for long"), {
  code: grpc.status.UNAVAILABLE,
});

/** What grpc-status-details-bin holds: google.rpc.Status with an ErrorInfo among its details. */
const RPC = protoLoader.fromJSON({
  nested: {
    Status: { fields: { details: { rule: "repeated", type: "Detail", id: 3 } } },
    Detail: { fields: { type_url: { type: "string", id: 1 }, value: { type: "bytes", id: 2 } } },
    ErrorInfo: { fields: { reason: { type: "string", id: 1 } } },
  },
}, LOADING);

/** A refusal. `code` is gRPC's; `reason` is one of docs/errors.md, or empty if nobody answered. */
export class FluoroError extends Error {
  constructor(error) {
    super(error.details || error.message, { cause: error });
    this.code = grpc.status[error.code] ?? "UNKNOWN";
    const [bytes] = error.metadata?.get("grpc-status-details-bin") ?? [];
    const details = bytes ? RPC.Status.deserialize(bytes).details : [];
    const info = details.find((detail) => detail.type_url.endsWith("/google.rpc.ErrorInfo"));
    this.reason = info ? RPC.ErrorInfo.deserialize(info.value).reason : "";
  }

  /** Whether the same call may succeed in a moment, unchanged. */
  get passes() {
    return this.code === "UNAVAILABLE" || this.reason === "WATCH_TOO_SLOW";
  }
}

export class Fluoro {
  /** token: a bearer token; caFile: authorities of the gateway's certificate, and TLS with them. */
  constructor(endpoint, { owner, token, caFile } = {}) {
    const credentials = caFile
      ? grpc.credentials.createSsl(readFileSync(caFile))
      : grpc.credentials.createInsecure();
    const options = {
      "grpc.keepalive_time_ms": 60_000, // gateways permit a ping every 30 s
      "grpc.initial_reconnect_backoff_ms": 200,
      "grpc.max_reconnect_backoff_ms": 3_000,
    };
    this.jobs = new fluoro.v1.JobService(endpoint, credentials, options);
    const shared = { ...options, channelOverride: this.jobs.getChannel() };
    this.blobs = new fluoro.v1.BlobService(endpoint, credentials, shared);
    this.pipelines = new fluoro.v1.PipelineService(endpoint, credentials, shared);
    this.metadata = new grpc.Metadata();
    if (token) this.metadata.set("authorization", `Bearer ${token}`);
    if (owner) this.metadata.set("fluoro-owner", owner);
    this.patience = FIRST_PATIENCE_MS;
  }

  close() {
    this.jobs.close();
  }

  /** A call that answers once. Only for calls that may be repeated: most, see docs/api. */
  async call(service, method, request) {
    return this.patiently(() => new Promise((resolve, reject) => {
      const options = { deadline: Date.now() + DEADLINE_MS };
      service[method](request, this.metadata, options, (error, answer) =>
        error ? reject(new FluoroError(error)) : resolve(answer));
    }));
  }

  /** Stores a file and returns the name of its blob. Goes on where it was when it breaks. */
  async upload(path, mediaType = "application/octet-stream") {
    const hash = createHash("sha256");
    for await (const chunk of createReadStream(path)) hash.update(chunk);
    const { size } = await stat(path);
    const header = { media_type: mediaType, size_bytes: size, sha256: hash.digest() };
    const upload_id = randomUUID();
    return this.patiently(async () => {
      const begun = await this.call(this.blobs, "BeginUpload", { upload_id, header });
      if (begun.blob) return begun.blob.name; // the same bytes are the same blob: nothing to send
      return this.send(path, { upload_id, offset: begun.committed_bytes ?? "0" });
    });
  }

  /** Sends a file from an offset on. */
  send(path, header) {
    async function* parts() {
      yield { header };
      const from = { start: Number(header.offset), highWaterMark: CHUNK_BYTES };
      for await (const chunk of createReadStream(path, from)) yield { chunk };
    }
    return new Promise((resolve, reject) => {
      const call = this.blobs.UploadBlob(this.metadata, (error, answer) =>
        error ? reject(new FluoroError(error)) : resolve(answer.blob.name));
      Readable.from(parts()).on("error", (error) => { call.cancel(); reject(error); }).pipe(call);
    });
  }

  /** Submits a job once, however often the call is repeated, and returns it. */
  async submit(request) {
    return (await this.call(this.jobs, "SubmitJob", { request_id: randomUUID(), ...request })).job;
  }

  /**
   * Every message about a job until it has ended. Events come once and in order, whatever breaks.
   * To go on in another process, keep the last message's cursor.
   */
  async *watch(name, cursor = "") {
    let sequence = 0n;
    for (let lost = 0; ;) {
      const stream = this.jobs.WatchJob({ name, start_cursor: cursor }, this.metadata);
      const silence = setTimeout(() => stream.destroy(SILENT), IDLE_MS);
      try {
        for await (const message of stream) {
          silence.refresh();
          lost = 0;
          this.patience = PATIENCE_MS;
          cursor = message.cursor || cursor;
          if (message.update === "event") {
            // A gateway that resumes from a bookmark may tell events again that came before it.
            if (BigInt(message.event.sequence) <= sequence) continue;
            sequence = BigInt(message.event.sequence);
          }
          yield message;
        }
        return; // the gateway ends a stream with OK after the last event alone
      } catch (error) {
        const refusal = new FluoroError(error);
        lost ||= Date.now();
        if (!refusal.passes || Date.now() - lost > this.patience) throw refusal;
        await sleep(500);
      } finally {
        clearTimeout(silence);
        stream.cancel();
      }
    }
  }

  /** Writes an artifact to a file, which is there whole and with its SHA-256, or not at all. */
  async download(artifact, path) {
    const hash = createHash("sha256");
    const file = await open(`${path}.part`, "w");
    let offset = 0; // where a download goes on that broke
    try {
      await this.patiently(async () => {
        const stream = this.blobs.DownloadBlob({ name: artifact.blob, offset }, this.metadata);
        try {
          for await (const { chunk } of stream) {
            await file.write(chunk);
            hash.update(chunk);
            offset += chunk.length;
          }
        } catch (error) {
          throw error.code === undefined ? error : new FluoroError(error);
        }
      });
    } finally {
      await file.close();
    }
    if (!hash.digest().equals(artifact.sha256)) throw new Error(`${artifact.name} arrived damaged`);
    await rename(`${path}.part`, path);
  }

  /** The artifacts of a job that have one of the roles, page by page. */
  async *artifacts(job, roles = []) {
    const request = { job, roles, page_size: 1000, page_token: "" };
    do {
      const page = await this.call(this.jobs, "ListArtifacts", request);
      for (const { artifact } of page.artifacts) yield artifact;
      request.page_token = page.next_page_token;
    } while (request.page_token);
  }

  /** Does it again while the gateway is away or busy. */
  async patiently(act) {
    for (const began = Date.now(); ;) {
      try {
        const answer = await act();
        this.patience = PATIENCE_MS;
        return answer;
      } catch (error) {
        if (!error.passes || Date.now() - began > this.patience) throw error;
        await sleep(500);
      }
    }
  }
}

/** Lists: one line of JSON for each job. */
async function list(client, [filter = ""], tell) {
  const request = { filter, page_token: "" };
  do {
    const page = await client.call(client.jobs, "ListJobs", request);
    page.jobs.forEach(tell);
    request.page_token = page.next_page_token;
  } while (request.page_token);
}

/** Runs a pipeline on files, tells every message, and writes the reports to a folder. */
async function run(client, [pipeline, folder, ...files], tell) {
  const inputs = await Promise.all(files.map((file) => client.upload(file, "application/dicom")));
  const job = await client.submit({ pipeline: `pipelines/${pipeline}`, job: { inputs } });
  const state = await watch(client, [job.name], tell);
  await mkdir(folder, { recursive: true });
  for await (const artifact of client.artifacts(job.name, ["report"])) {
    await client.download(artifact, join(folder, artifact.name));
  }
  return state;
}

/** Tells every message about a job; the state that it ended in. */
async function watch(client, [job, cursor], tell) {
  let state = "";
  for await (const message of client.watch(job, cursor)) {
    tell(message);
    state = message.event?.job_changed?.state ?? message.snapshot?.state ?? state;
  }
  return state;
}

async function main([command, ...words]) {
  const commands = { run, watch, list };
  if (!(command in commands)) throw new Error("say run, watch or list; see the top of fluoro.mjs");
  const client = new Fluoro(process.env.FLUORO_ENDPOINT ?? "localhost:50051", {
    owner: process.env.FLUORO_OWNER,
    token: process.env.FLUORO_TOKEN,
    caFile: process.env.FLUORO_CA_FILE,
  });
  const tell = (told) => console.log(JSON.stringify(told));
  try {
    const state = await commands[command](client, words, tell);
    return NOT_GOOD.includes(state) ? 1 : 0;
  } finally {
    client.close();
  }
}

if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  try {
    process.exitCode = await main(process.argv.slice(2));
  } catch (error) {
    console.error(error.reason ? `${error.reason}: ${error.message}` : error.message);
    process.exitCode = 3;
  }
}
