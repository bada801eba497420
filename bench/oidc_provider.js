// oidc-provider with refresh tokens that are ready to be used. Prints `{ port, tokens }` as a line of
// JSON, and ends with its standard input.
//
// usage: node oidc_provider.js CLIENT_ID CLIENT_SECRET HOW_MANY_TOKENS
import { generateKeyPairSync, randomUUID } from 'node:crypto';
import http from 'node:http';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

// The one that the authserver's tests sign in with.
const require = createRequire(new URL('../authserver/tests/upstream/package.json', import.meta.url));
const { default: Provider } = await import(pathToFileURL(require.resolve('oidc-provider')));

const [clientId, clientSecret, count] = process.argv.slice(2);
const resource = 'urn:dormouse:bench';
const scopes = 'workload:use workload:manage';

const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
const key = { ...privateKey.export({ format: 'jwk' }), kid: randomUUID(), use: 'sig', alg: 'RS256' };
const person = { preferred_username: 'alice', email: 'alice@example.com', groups: ['research'] };

const server = http.createServer();
server.listen(0, '127.0.0.1', async () => {
  const { port } = server.address();
  const provider = new Provider(`http://127.0.0.1:${port}`, {
    clients: [{
      client_id: clientId,
      client_secret: clientSecret,
      grant_types: ['authorization_code', 'refresh_token'],
      redirect_uris: ['http://127.0.0.1/callback'],
    }],
    claims: { openid: ['sub'], profile: ['preferred_username', 'groups'], email: ['email'] },
    conformIdTokenClaims: false,
    features: {
      devInteractions: { enabled: false },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => resource,
        useGrantedResource: () => true,
        getResourceServerInfo: () => ({
          scope: scopes,
          audience: 'dormouse',
          accessTokenTTL: 600,
          accessTokenFormat: 'jwt',
          jwt: { sign: { alg: 'RS256' } },
        }),
      },
    },
    extraTokenClaims: () => person,
    jwks: { keys: [key] },
    cookies: { keys: [randomUUID()] },
    rotateRefreshToken: true,
    ttl: { Grant: 3600, RefreshToken: 3600, IdToken: 600 },
    findAccount: (_ctx, sub) => ({ accountId: sub, claims: () => ({ sub, ...person }) }),
  });
  server.on('request', provider.callback());

  const client = await provider.Client.find(clientId);
  const tokens = [];
  for (let made = 0; made < Number(count); made += 1) {
    const grant = new provider.Grant({ accountId: 'alice', clientId });
    grant.addOIDCScope('openid profile email offline_access');
    grant.addResourceScope(resource, scopes);
    const token = new provider.RefreshToken({
      accountId: 'alice',
      authTime: Math.floor(Date.now() / 1000),
      client,
      grantId: await grant.save(),
      gty: 'authorization_code',
      resource,
      rotations: 0,
      scope: `openid profile email offline_access ${scopes}`,
    });
    tokens.push(await token.save());
  }
  console.log(JSON.stringify({ port, tokens }));
});
process.stdin.resume().on('end', () => process.exit(0));
