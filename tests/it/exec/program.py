# A pull from the sandbox, and tasks that take their process with them; with "async" as an argument in one event loop, else in threads.
import asyncio
import os
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../sdk/python"))
from weir import serve

BANK, TOKEN = os.environ["BANK_URL"], os.environ["BANK_TOKEN"]


def pull(task, context):
    print("pid", os.getpid())
    context.secret(TOKEN)
    if task["input"].get("do") == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    while task["input"].get("do") == "hang":
        time.sleep(1)
    if task["input"].get("do") == "wait":
        context.request("GET", BANK + "/accounts?customer=c1", {"authorization": "Bearer " + TOKEN})
    headers = {"authorization": "Bearer " + TOKEN}
    accounts = context.request("GET", BANK + "/accounts?customer=" + task["input"]["customer"], headers).json()
    path = "/accounts/%s/transactions" % accounts["accounts"][0]["id"]
    return {"transactions": len(context.request("GET", BANK + path, headers).json()["transactions"])}


async def wait(task, context):
    print("pid", os.getpid())
    if task["input"].get("do") == "wait":
        await asyncio.sleep(1000)
    return task["input"]


serve(wait if "async" in sys.argv else pull, concurrency=40)
