# Submits many tasks to a router over one stream, and prints each answer as it comes: in the order in which they end.
import json, sys, uuid, grpc
from google.rpc import error_details_pb2
from weir.v1 import tasks_pb2, tasks_pb2_grpc

usual = ["127.0.0.1:7400", "bank", "10"]
address, integration, count = sys.argv[1:] + usual[len(sys.argv) - 1 :]


def tasks():
    for n in range(int(count)):
        # A reply names its task by the id alone, so each needs one of its own.
        task = tasks_pb2.Task(id=str(uuid.uuid4()), integration=integration, input=json.dumps({"customer": f"c{n}"}))
        task.timeout.FromSeconds(30)
        yield task


router = tasks_pb2_grpc.TasksStub(grpc.insecure_channel(address))
try:
    # Without a deadline for the whole stream: each task has its timeout.
    for reply in router.SubmitMany(tasks()):
        if reply.HasField("outcome"):
            print(reply.task_id, reply.outcome.output or reply.outcome.failure)
        else:
            info = error_details_pb2.ErrorInfo()
            weirs = any(detail.Unpack(info) for detail in reply.error.details) and info.domain == "weir"
            started = info.metadata["started"] if weirs else "unknown"
            print(reply.task_id, "no outcome:", reply.error.message, info.reason, "started:", started)
except grpc.RpcError as error:
    sys.exit(f"the stream broke, and what has no answer may have run: {error.details()}")
