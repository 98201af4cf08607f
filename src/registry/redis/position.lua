-- KEYS: members, open, open to batch, changes, epoch, a key that is never there
-- ARGV: how many changes are kept
-- Returns the epoch, the id of the oldest change that is kept and that of the latest; empty where there is none.
local members, open, batch, changes, epoch = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
-- A server that is out of memory takes no heartbeats and answers all the same, while everyone's time runs out. This adds
-- nothing, and fails there.
redis.call('XADD', KEYS[6], 'NOMKSTREAM', '*', 'probe', '')
prune(members, open, batch, changes, ARGV[1], now_ms())
local oldest = redis.call('XRANGE', changes, '-', '+', 'COUNT', 1)[1]
local latest = redis.call('XREVRANGE', changes, '+', '-', 'COUNT', 1)[1]
return { redis.call('GET', epoch) or '', oldest and oldest[1] or '', latest and latest[1] or '' }
