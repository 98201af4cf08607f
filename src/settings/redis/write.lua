-- Puts a document in the place of the one that was expected, and returns the number of the change; 0 when another is there.
local document, history, revision = KEYS[1], KEYS[2], KEYS[3]
local expected, new, who, why, kept, unknown, found, most = unpack(ARGV)

local current = redis.call('GET', document) or ''
-- Whoever read one that is larger than a document may be has one byte more of it than that.
if string.sub(current, 1, most + 1) ~= expected then
  return 0
end

local function note(text, by, reason)
  local number = redis.call('INCR', revision)
  redis.call('XADD', history, 'MAXLEN', kept, '*', 'revision', number, 'who', by, 'why', reason, 'document', text)
  return number
end

-- What somebody else has put there can be gone back to, if anybody would take it.
local function last_written()
  local last = redis.call('XREVRANGE', history, '+', '-', 'COUNT', 1)[1]
  local fields = last and last[2] or {}
  for at = 1, #fields, 2 do
    if fields[at] == 'document' then
      return fields[at + 1]
    end
  end
end

if current ~= '' and #current <= tonumber(most) and current ~= last_written() then
  note(current, unknown, found)
end
redis.call('SET', document, new)
return note(new, who, why)
