// A pull in JavaScript: a customer's accounts, and the transactions of the first. weir.toml, beside it, says how to run it.
import { serve, TaskError } from "../../sdk/node/weir.mjs";

const bank = process.env.BANK_URL ?? "http://127.0.0.1:7480";
const token = process.env.BANK_TOKEN ?? "sandbox.me";

async function get(context, path) {
  const response = await context.fetch(bank + path, { headers: { authorization: `Bearer ${token}` } });
  if (response.status === 401) throw new TaskError("the bank refuses the token", "user_action", "token_refused");
  if (response.status === 429 || response.status >= 500) throw new TaskError(`the bank answered ${response.status}`, "retry");
  if (!response.ok) throw new TaskError(`the bank answered ${response.status}`);
  return response.json();
}

serve(
  async (task, context) => {
    context.secret(token);
    if (typeof task.input?.customer !== "string") throw new TaskError('the input needs a "customer"');
    const { accounts } = await get(context, `/accounts?customer=${encodeURIComponent(task.input.customer)}`);
    const { transactions } = await get(context, `/accounts/${accounts[0].id}/transactions`);
    console.log(`${transactions.length} transactions`); // A note in the task's transcript.
    return { accounts: accounts.length, transactions: transactions.length };
  },
  { concurrency: 32 },
);
