# Submits one task to a router; the README says how to run it.
import sys, uuid, grpc
from grpc_status import rpc_status
from google.rpc import error_details_pb2
from weir.v1 import tasks_pb2, tasks_pb2_grpc

usual = ["127.0.0.1:7400", "bank", '{"customer":"c1"}']
address, integration, input = sys.argv[1:] + usual[len(sys.argv) - 1 :]

router = tasks_pb2_grpc.TasksStub(grpc.insecure_channel(address))
task = tasks_pb2.Task(id=str(uuid.uuid4()), integration=integration, input=input)
task.timeout.FromSeconds(30)
try:
    outcome = router.Submit(task, timeout=31)
    print(outcome.output or outcome.failure)
except grpc.RpcError as error:
    info, status = error_details_pb2.ErrorInfo(), rpc_status.from_call(error)
    weirs = status and any(detail.Unpack(info) for detail in status.details) and info.domain == "weir"
    print("no outcome:", error.details(), info.reason, "started:", info.metadata["started"] if weirs else "unknown")
