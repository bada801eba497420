// The company's identity provider in tests: a certified OpenID provider whose people and faults
// are set over HTTP. Prints the port it listens on, and ends with its standard input.
//
// usage: node upstream.js REDIRECT_URI [POST_LOGOUT_REDIRECT_URI] [PORT]
import { generateKeyPairSync, randomUUID } from 'node:crypto';
import http from 'node:http';
import Provider from 'oidc-provider';

const [redirectUri, postLogoutUri, port] = process.argv.slice(2);

// Another at each start, so that starting it again rotates the keys.
const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
const key = { ...privateKey.export({ format: 'jwk' }), kid: randomUUID(), use: 'sig', alg: 'RS256' };

// By account id: the claims, whether they may sign in, and what their ID tokens say in place of what this
// provider knows (null: nothing).
const people = new Map();

const server = http.createServer();
server.listen(Number(port ?? 0), '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const provider = new Provider(issuer, {
    clients: [{
      client_id: 'dormouse',
      client_secret: 'a-secret-of-the-upstream-with-%-and-+',
      redirect_uris: [redirectUri],
      post_logout_redirect_uris: postLogoutUri ? [postLogoutUri] : [],
    }],
    claims: {
      openid: ['sub'],
      profile: ['preferred_username', 'groups'],
      email: ['email', 'email_verified'],
    },
    features: { devInteractions: { enabled: false } },
    jwks: { keys: [key] },
    pkce: { required: () => true },
    cookies: { keys: ['a key of the test'] },
    interactions: { url: (_ctx, interaction) => `/interaction/${interaction.uid}` },
    findAccount: (_ctx, sub) => people.has(sub)
      ? { accountId: sub, claims: () => ({ sub, ...people.get(sub).claims }) }
      : undefined,
    renderError: (ctx, out) => {
      ctx.type = 'json';
      ctx.body = out;
    },
  });

  const { payload } = provider.IdToken.prototype;
  provider.IdToken.prototype.payload = async function said() {
    const claims = await payload.call(this);
    for (const [name, value] of Object.entries(people.get(claims.sub)?.says ?? {})) {
      if (value === null) delete claims[name];
      else claims[name] = value;
    }
    return claims;
  };

  const callback = provider.callback();
  server.on('request', async (request, response) => {
    const url = new URL(request.url, issuer);
    try {
      if (request.method === 'PUT' && url.pathname.startsWith('/people/')) {
        const chunks = [];
        for await (const chunk of request) chunks.push(chunk);
        people.set(url.pathname.slice('/people/'.length), JSON.parse(Buffer.concat(chunks)));
        response.writeHead(204).end();
      } else if (url.pathname.startsWith('/interaction/')) {
        await interact(provider, request, response, url.searchParams.get('as'));
      } else {
        callback(request, response);
      }
    } catch (error) {
      console.error(error);
      response.writeHead(500).end();
    }
  });
  console.log(server.address().port);
});

// Signs in whoever the address names (`?as=ID`), as a person would by typing their password.
async function interact(provider, request, response, as) {
  const { prompt, params, session } = await provider.interactionDetails(request, response);
  if (prompt.name === 'login') {
    if (!as) {
      response.writeHead(200).end('Who are you?');
      return;
    }
    const result = people.get(as)?.disabled
      ? { error: 'access_denied', error_description: 'this account is disabled' }
      : { login: { accountId: as } };
    await provider.interactionFinished(request, response, result, { mergeWithLastSubmission: false });
    return;
  }
  const grant = new provider.Grant({ accountId: session.accountId, clientId: params.client_id });
  grant.addOIDCScope(params.scope);
  const consent = { grantId: await grant.save() };
  await provider.interactionFinished(request, response, { consent }, { mergeWithLastSubmission: true });
}

process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
