// Submits many tasks to a router over one stream, and prints each answer as it comes: in the order in which they end.
import { randomUUID } from "node:crypto";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const types = loadSync(["weir/v1/tasks.proto", "google/rpc/error_details.proto"], {
  includeDirs: ["proto"],
  keepCase: true,
  enums: String,
  defaults: true,
  oneofs: true,
});
const { weir } = grpc.loadPackageDefinition(types);
const [address = "127.0.0.1:7400", integration = "bank", count = "10"] = process.argv.slice(2);

function* tasks() {
  for (let n = 0; n < Number(count); n++) {
    // A reply names its task by the id alone, so each needs one of its own.
    yield { id: randomUUID(), integration, input: JSON.stringify({ customer: `c${n}` }), timeout: { seconds: 30 } };
  }
}

const router = new weir.v1.Tasks(address, grpc.credentials.createInsecure());
try {
  // Without a deadline for the whole stream: each task has its timeout.
  await pipeline(Readable.from(tasks()), router.SubmitMany(), async (replies) => {
    for await (const { task_id, result, outcome, error } of replies) {
      if (result === "outcome") {
        console.log(task_id, outcome.output || outcome.failure);
      } else {
        const any = error.details.find((detail) => detail.type_url.endsWith("/google.rpc.ErrorInfo"));
        const info = any && types["google.rpc.ErrorInfo"].deserialize(any.value);
        const started = info?.domain === "weir" ? info.metadata.started : "unknown";
        console.log(task_id, "no outcome:", error.message, info?.reason ?? "", "started:", started);
      }
    }
  });
} catch (error) {
  console.error("the stream broke, and what has no answer may have run:", error.details ?? error.message);
  process.exitCode = 1;
}
router.close();
