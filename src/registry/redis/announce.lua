-- KEYS: members, open, changes, epoch, presence
-- ARGV: worker, incarnation, presence as JSON, TTL in ms, 1 when it has room, 1 when followers must hear of it,
--       how many changes are kept, a name for the epoch if one begins here
-- Returns 0 when a newer incarnation has the worker's id, else 1.
local members, open, changes, epoch, presence = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local worker, incarnation, ttl, kept = ARGV[1], ARGV[2], tonumber(ARGV[4]), ARGV[7]
local now = now_ms()

-- Incarnations are time-ordered UUIDs, so that their texts compare like their ages.
local known = redis.call('GETRANGE', presence, 0, 35)
if known > incarnation then
  return 0
end

redis.call('SET', epoch, ARGV[8], 'NX')
local value = incarnation .. ' ' .. ARGV[3]
redis.call('SET', presence, value, 'PX', ttl)
if known ~= '' and known ~= incarnation then
  redis.call('ZREM', members, worker .. '/' .. known)
  redis.call('ZREM', open, worker .. '/' .. known)
end
local member = worker .. '/' .. incarnation
redis.call('ZADD', members, now + ttl, member)
if ARGV[5] == '1' then
  redis.call('ZADD', open, now + ttl, member)
else
  redis.call('ZREM', open, member)
end
-- An unknown worker is reported in any case: that is how an emptied server heals.
if ARGV[6] == '1' or known ~= incarnation then
  report(changes, kept, 'present', value)
end
prune(members, open, changes, kept, now)
return 1
