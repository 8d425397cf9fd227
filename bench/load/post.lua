-- For wrk: POSTs the lines of a file (BODIES) one after another; each thread begins elsewhere in it.
-- Without BODIES it sends plain GETs. Ends with one line of JSON that the caller reads.
local threads = 0

function setup(thread)
  thread:set("nth", threads)
  threads = threads + 1
end

function init()
  local path = os.getenv("BODIES")
  if not path then return end
  local headers = { ["Content-Type"] = "application/json", ["Host"] = wrk.headers["Host"] }
  local requests = {}
  for line in io.lines(path) do
    requests[#requests + 1] = wrk.format("POST", nil, headers, line)
  end
  local at = math.floor(nth * #requests / 2) % #requests
  request = function()
    at = at % #requests + 1
    return requests[at]
  end
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\nRESULT {"requests":%d,"seconds":%f,"bytes":%d,"p50_ms":%f,"p99_ms":%f,"p999_ms":%f,'
      .. '"refused":%d,"socket_errors":%d,"timeouts":%d}\n',
    summary.requests, summary.duration / 1e6, summary.bytes,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency:percentile(99.9) / 1e3,
    errors.status, errors.connect + errors.read + errors.write, errors.timeout))
end
