-- wrk: another token with each request. The file that TOKENS names holds one a line.
local requests = {}
local next = 0

function init()
  for token in io.lines(os.getenv("TOKENS")) do
    local headers = { Host = os.getenv("HOST_FIELD"), Authorization = "Bearer " .. token }
    requests[#requests + 1] = wrk.format("GET", nil, headers)
  end
end

function request()
  next = next % #requests + 1
  return requests[next]
end
