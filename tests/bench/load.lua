-- What wrk sends: the framed requests of a file (see frames.py), in turn.
--
-- wrk ... -s load.lua URL -- FILE once|again
--
-- "once": when all were sent, the load ends and says so. Prints one JSON object.

local requests, is_once, threads = {}, false, {}
local sent = 0
-- Global, so that done() can ask the thread for it.
has_run_out = false

function setup(thread)
    threads[#threads + 1] = thread
end

function init(args)
    local file = assert(io.open(args[1], "rb"))
    for head in function() return file:read(4) end do
        local a, b, c, d = head:byte(1, 4)
        requests[#requests + 1] = file:read(a + 256 * (b + 256 * (c + 256 * d)))
    end
    file:close()
    is_once = args[2] == "once"
end

function request()
    sent = sent + 1
    if is_once and sent > #requests then
        has_run_out = true
        wrk.thread:stop()
    end
    return requests[(sent - 1) % #requests + 1]
end

function done(summary, latency)
    local errors = summary.errors
    io.write(string.format(
        '{"requests": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f, "refused": %d, '
            .. '"broken": %d, "has_run_out": %s}\n',
        summary.requests, summary.duration / 1e6,
        latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, errors.status,
        errors.connect + errors.read + errors.write + errors.timeout,
        tostring(threads[1]:get("has_run_out"))
    ))
end
