// Submits one task to a router; the README says how to run it.
import { randomUUID } from "node:crypto";
import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const types = loadSync(["weir/v1/tasks.proto", "google/rpc/status.proto", "google/rpc/error_details.proto"], {
  includeDirs: ["proto"],
  keepCase: true,
  enums: String,
  defaults: true,
});
const { weir } = grpc.loadPackageDefinition(types);
const [address = "127.0.0.1:7400", integration = "bank", input = '{"customer":"c1"}'] = process.argv.slice(2);

const router = new weir.v1.Tasks(address, grpc.credentials.createInsecure());
const task = { id: randomUUID(), integration, input, timeout: { seconds: 30 } };
router.Submit(task, { deadline: Date.now() + 31_000 }, (error, outcome) => {
  if (error) {
    const info = errorInfo(error);
    console.log("no outcome:", error.details, info?.reason ?? "", "started:", info?.metadata.started ?? "unknown");
  } else {
    console.log(outcome.output || outcome.failure);
  }
  router.close();
});

/** weir's ErrorInfo, from the status that the error carries beside its code; undefined when the error is not weir's. */
function errorInfo(error) {
  const [bytes] = error.metadata.get("grpc-status-details-bin");
  const { details } = bytes ? types["google.rpc.Status"].deserialize(bytes) : { details: [] };
  const any = details.find((detail) => detail.type_url.endsWith("/google.rpc.ErrorInfo"));
  const info = any && types["google.rpc.ErrorInfo"].deserialize(any.value);
  return info?.domain === "weir" ? info : undefined;
}
