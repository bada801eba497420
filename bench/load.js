// Load on a token endpoint: refresh grants, a number of families at a time.

import http from 'node:http';

/** One request on loopback: `{ status, headers, text }`. */
export function request(port, path, { method = 'GET', headers = {}, body, agent } = {}) {
  return new Promise((resolve, reject) => {
    const options = { host: '127.0.0.1', port, path, method, headers, agent };
    const sent = http.request(options, (response) => {
      const chunks = [];
      response.on('data', (chunk) => chunks.push(chunk));
      response.on('error', reject);
      response.on('end', () => {
        const text = Buffer.concat(chunks).toString();
        resolve({ status: response.statusCode, headers: response.headers, text });
      });
    });
    sent.on('error', reject);
    sent.end(body);
  });
}

/** A form as a client with a secret sends it to a token endpoint; answers the JSON, or throws. */
export async function tokenRequest({ port, path, client, agent }, fields) {
  const body = new URLSearchParams(fields).toString();
  const basic = Buffer.from(`${client.id}:${client.secret}`).toString('base64');
  const headers = {
    authorization: `Basic ${basic}`,
    'content-type': 'application/x-www-form-urlencoded',
    'content-length': Buffer.byteLength(body),
  };
  const { status, text } = await request(port, path, { method: 'POST', headers, body, agent });
  if (status !== 200) throw new Error(`the token endpoint answered ${status}: ${text}`);
  return JSON.parse(text);
}

/**
 * Refreshes each of `tokens` again and again, one after the other, all at once, for so many
 * seconds. The successors take the tokens' places. Answers grants per second.
 */
export async function refreshFor(seconds, endpoint, tokens, { scope, signatures }) {
  const agent = new http.Agent({ keepAlive: true, maxSockets: tokens.length });
  const started = performance.now();
  const end = started + seconds * 1000;
  let granted = 0;
  const family = async (index) => {
    while (performance.now() < end) {
      const fields = { grant_type: 'refresh_token', refresh_token: tokens[index], scope };
      const answer = await tokenRequest({ ...endpoint, agent }, fields);
      // What is compared must be the same work.
      const signed = [answer.access_token, answer.id_token].filter((token) => token?.split('.').length === 3);
      if (signed.length !== signatures) throw new Error(`${signed.length} signed tokens instead of ${signatures}`);
      if (answer.refresh_token === tokens[index]) throw new Error('the refresh token does not change');
      tokens[index] = answer.refresh_token;
      granted += 1;
    }
  };
  try {
    await Promise.all(tokens.map((_, index) => family(index)));
  } finally {
    agent.destroy();
  }
  return granted / ((performance.now() - started) / 1000);
}
