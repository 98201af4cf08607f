-- KEYS: lease, the last token that was given
-- ARGV: TTL in ms, 0 to give it back; the token that the caller holds it by, empty to take it
-- Returns the token by which the caller holds it now, or an empty text.
local lease, last, ttl, token = KEYS[1], KEYS[2], tonumber(ARGV[1]), ARGV[2]
local held = redis.call('GETRANGE', lease, 0, -1)

if token == '' then
  if held ~= '' then
    return ''
  end
  -- Larger than all before, and also where the server has forgotten those: its clock goes on.
  local before = tonumber(redis.call('GETRANGE', last, 0, -1)) or 0
  token = string.format('%.0f', math.max(before + 1, now_ms()))
  redis.call('SET', last, token)
elseif held ~= token then
  return ''
elseif ttl == 0 then
  redis.call('DEL', lease)
  return ''
end
redis.call('SET', lease, token, 'PX', ttl)
return token
