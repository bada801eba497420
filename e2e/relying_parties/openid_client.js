// A program that signs people in with openid-client and shows, as JSON, what it learnt of them. It
// is a public client: it keeps no secret, PKCE alone ties the code to it.
//
// environment: ISSUER, CLIENT_ID, PORT
import http from 'node:http';
import * as client from 'openid-client';

const { ISSUER, CLIENT_ID, PORT } = process.env;
const self = `http://127.0.0.1:${PORT}`;
const config = await client.discovery(new URL(ISSUER), CLIENT_ID, undefined, client.None());
// Verifies the signature of ID tokens too, and not only where they came from.
client.enableNonRepudiationChecks(config);

/** What has to come back, by state. */
const started = new Map();

async function begin() {
  const state = client.randomState();
  const nonce = client.randomNonce();
  const verifier = client.randomPKCECodeVerifier();
  started.set(state, { nonce, verifier });
  return client.buildAuthorizationUrl(config, {
    redirect_uri: `${self}/callback`,
    scope: 'openid profile email groups',
    code_challenge: await client.calculatePKCECodeChallenge(verifier),
    code_challenge_method: 'S256',
    state,
    nonce,
  });
}

async function finish(url) {
  const state = url.searchParams.get('state');
  const { nonce, verifier } = started.get(state);
  started.delete(state);
  const checks = { pkceCodeVerifier: verifier, expectedState: state, expectedNonce: nonce };
  const first = await client.authorizationCodeGrant(config, url, checks);
  const claims = first.claims();
  const userinfo = await client.fetchUserInfo(config, first.access_token, claims.sub);
  // The tokens of a refresh work as the first ones did.
  const second = await client.refreshTokenGrant(config, first.refresh_token);
  const again = await client.fetchUserInfo(config, second.access_token, claims.sub);
  await client.tokenRevocation(config, second.refresh_token);
  const refused = await client.refreshTokenGrant(config, second.refresh_token).then(
    () => undefined,
    ({ error }) => error,
  );
  return { claims, userinfo, again, refused };
}

const server = http.createServer(async (request, response) => {
  const url = new URL(request.url, self);
  try {
    if (url.pathname === '/callback') {
      response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(await finish(url)));
    } else if (url.pathname === '/sign-in') {
      response.writeHead(303, { location: (await begin()).href }).end();
    } else {
      response.writeHead(204).end();
    }
  } catch (error) {
    console.error(error);
    response.writeHead(500).end('signing in failed');
  }
});
server.listen(Number(PORT), '127.0.0.1');
