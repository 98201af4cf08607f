-- Shared by the scripts below it. A member is '{worker}/{incarnation}', its score the expiry by this server's clock.

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function report(changes, kept, kind, text)
  redis.call('XADD', changes, 'MAXLEN', '~', kept, '*', kind, text)
end

local function forget(indexes, member)
  for _, index in ipairs(indexes) do
    redis.call('ZREM', index, member)
  end
end

-- Reports and forgets members whose time is over, a bounded number per call: someone calls again soon.
local function prune(members, open, batch, changes, kept, now)
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', members, '-inf', now, 'LIMIT', 0, 64)) do
    forget({ members, open, batch }, member)
    report(changes, kept, 'gone', member)
  end
end
