"""A pull in Python: a customer's accounts, and the transactions of the first. weir.toml, beside it, says how to run it."""
import os
import sys
import urllib.parse
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "sdk" / "python"))
from weir import TaskError, serve

BANK = os.environ.get("BANK_URL", "http://127.0.0.1:7480")
TOKEN = os.environ.get("BANK_TOKEN", "sandbox.me")


def get(context, path):
    response = context.request("GET", BANK + path, {"authorization": "Bearer " + TOKEN})
    if response.status == 401:
        raise TaskError("the bank refuses the token", "user_action", "token_refused")
    if response.status == 429 or response.status >= 500:
        raise TaskError("the bank answered %d" % response.status, "retry")
    if response.status != 200:
        raise TaskError("the bank answered %d" % response.status)
    return response.json()


def pull(task, context):
    context.secret(TOKEN)
    if not isinstance(task["input"], dict) or not isinstance(task["input"].get("customer"), str):
        raise TaskError('the input needs a "customer"')
    customer = urllib.parse.quote(task["input"]["customer"], safe="")
    accounts = get(context, "/accounts?customer=" + customer)["accounts"]
    transactions = get(context, "/accounts/%s/transactions" % accounts[0]["id"])["transactions"]
    print(len(transactions), "transactions")  # A note in the task's transcript.
    return {"accounts": len(accounts), "transactions": len(transactions)}


if __name__ == "__main__":
    serve(pull, concurrency=16)
