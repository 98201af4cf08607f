-- KEYS: members, open, open to batch, changes, presence
-- ARGV: worker, incarnation, how many changes are kept
local members, open, batch, changes, presence = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local member = ARGV[1] .. '/' .. ARGV[2]
if redis.call('GETRANGE', presence, 0, 35) == ARGV[2] then
  redis.call('DEL', presence)
end
forget({ open, batch }, member)
if redis.call('ZREM', members, member) == 1 then
  report(changes, ARGV[3], 'gone', member)
end
return 1
