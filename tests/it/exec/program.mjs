// A pull from the sandbox, and tasks that take their process with them.
import { serve } from "../../../sdk/node/weir.mjs";

const { BANK_URL, BANK_TOKEN } = process.env;

serve(
  async (task, context) => {
    console.log(`pid ${process.pid}`);
    context.secret(BANK_TOKEN);
    if (task.input.do === "die") process.kill(process.pid, "SIGKILL");
    while (task.input.do === "hang");
    if (task.input.do === "lose") {
      Promise.reject(new Error("nobody waits for this"));
      await new Promise(() => {});
    }
    const get = async (path) => {
      const response = await context.fetch(BANK_URL + path, { headers: { authorization: `Bearer ${BANK_TOKEN}` } });
      return response.json();
    };
    const { accounts } = await get(`/accounts?customer=${task.input.customer}`);
    const { transactions } = await get(`/accounts/${accounts[0].id}/transactions`);
    return { transactions: transactions.length };
  },
  { concurrency: 40 },
);
