-- Takes the right to send, all or none.
-- KEYS: the app's bucket, what it sent by day. ARGV: now in ms or empty, most in a second, most in a day, messages, 1 to owe,
-- the day, what was sent on it before or empty. A limit of 0 is none.
-- Returns {what came of it, left of the second, sent on the day}.
local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local second, day, messages = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local owe, today, before = ARGV[5] == '1', ARGV[6], ARGV[7]
-- Of days nobody asks for any more: a day, a day of skewed clocks, an hour.
local days_kept_ms = 49 * 3600 * 1000

local left = second
if second > 0 then
  local held = redis.call('HMGET', KEYS[1], 'left', 'at')
  if held[1] then
    left = math.min(second, tonumber(held[1]) + math.max(0, now - tonumber(held[2])) / 1000 * second)
  end
end

local function answer(outcome, sent)
  return {outcome, string.format('%.17g', left), string.format('%.0f', sent)}
end

local sent = 0
if day > 0 then
  local known = redis.call('HGET', KEYS[2], today)
  if not known then
    if before == '' then return {'unknown'} end
    redis.call('HSET', KEYS[2], today, before)
    redis.call('PEXPIRE', KEYS[2], days_kept_ms)
    local days = redis.call('HKEYS', KEYS[2])
    if #days > 2 then
      table.sort(days)
      redis.call('HDEL', KEYS[2], days[1])
      if days[1] == today then return {'unknown'} end
    end
    known = before
  end
  sent = tonumber(known)
  if messages > 0 and sent + messages > day then return answer('day', sent) end
end

if messages > 0 then
  if second > 0 then
    if left < math.min(messages, second) and not owe then return answer('second', sent) end
    if owe then
      -- What was scheduled is paid off in a second, however much of it came at once; what is owed besides stays.
      left = math.max(left - messages, math.min(left, -second))
    else
      left = left - messages
    end
    redis.call('HSET', KEYS[1], 'left', string.format('%.17g', left), 'at', string.format('%.0f', now))
    -- By then it is full again, and forgotten it is full as well.
    redis.call('PEXPIRE', KEYS[1], 60000 + math.ceil((second - left) / second * 1000))
  end
  if day > 0 then sent = redis.call('HINCRBY', KEYS[2], today, ARGV[4]) end
end
return answer('taken', sent)
