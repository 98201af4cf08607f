# Submits one task to a router; the README says how to run it.
import json, uuid, grpc
from grpc_status import rpc_status
from google.rpc import error_details_pb2
from weir.v1 import tasks_pb2, tasks_pb2_grpc

router = tasks_pb2_grpc.TasksStub(grpc.insecure_channel("127.0.0.1:7400"))
task = tasks_pb2.Task(id=str(uuid.uuid4()), integration="bank", input=json.dumps({"customer": "c1"}))
task.timeout.FromSeconds(30)
try:
    outcome = router.Submit(task, timeout=31)
    print(outcome.output or outcome.failure)
except grpc.RpcError as error:
    info, status = error_details_pb2.ErrorInfo(), rpc_status.from_call(error)
    weirs = status and any(detail.Unpack(info) for detail in status.details)
    print("no outcome:", error.details(), info.reason, "started:", info.metadata["started"] if weirs else "unknown")
