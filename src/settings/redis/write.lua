-- Puts a document in the place of the one that was expected, and returns the number of the change; 0 when another is there.
local document, history, revision = KEYS[1], KEYS[2], KEYS[3]
local expected, new, who, why, kept, unknown, found = unpack(ARGV)

local current = redis.call('GET', document) or ''
if current ~= expected then
  return 0
end

local function note(text, by, reason)
  local number = redis.call('INCR', revision)
  redis.call('XADD', history, 'MAXLEN', kept, '*', 'revision', number, 'who', by, 'why', reason, 'document', text)
  return number
end

-- What was there before the first change can be gone back to.
if current ~= '' and redis.call('EXISTS', history) == 0 then
  note(current, unknown, found)
end
redis.call('SET', document, new)
return note(new, who, why)
