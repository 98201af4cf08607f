-- KEYS: members, open, open to batch, changes, epoch, presence
-- ARGV: worker, incarnation, presence as JSON, TTL in ms, 1 when it has room, 1 when it has room for batch tasks,
--       1 when followers must hear of it, how many changes are kept, a name for the epoch if one begins here
-- Returns 0 when a newer incarnation has the worker's id, else 1.
local members, open, batch, changes, epoch, presence = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local worker, incarnation, ttl, kept = ARGV[1], ARGV[2], tonumber(ARGV[4]), ARGV[8]
local now = now_ms()

-- Incarnations are time-ordered UUIDs, so that their texts compare like their ages.
local known = redis.call('GETRANGE', presence, 0, 35)
if known > incarnation then
  return 0
end

redis.call('SET', epoch, ARGV[9], 'NX')
local value = incarnation .. ' ' .. ARGV[3]
redis.call('SET', presence, value, 'PX', ttl)
if known ~= '' and known ~= incarnation then
  forget({ members, open, batch }, worker .. '/' .. known)
end
local member = worker .. '/' .. incarnation
redis.call('ZADD', members, now + ttl, member)
for index, has_room in pairs({ [open] = ARGV[5], [batch] = ARGV[6] }) do
  if has_room == '1' then
    redis.call('ZADD', index, now + ttl, member)
  else
    redis.call('ZREM', index, member)
  end
end
-- An unknown worker is reported in any case: that is how an emptied server heals.
if ARGV[7] == '1' or known ~= incarnation then
  report(changes, kept, 'present', value)
end
prune(members, open, batch, changes, kept, now)
return 1
