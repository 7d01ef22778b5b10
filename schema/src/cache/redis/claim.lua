-- Claims a route: the newer epoch wins, the same one claimed again wins.
-- KEYS: the account's routes. ARGV: resource, front, epoch, most resources.
-- Returns {1, replaced or false}, {0, the newer one} or {2} when there is no room.

-- Byte by byte: how `<` compares texts depends on the server's locale.
local function newer(a, b)
  for i = 1, #a do
    local x, y = string.byte(a, i), string.byte(b, i) or 0
    if x ~= y then return x > y end
  end
  return false
end

local held = redis.call('HGET', KEYS[1], ARGV[1])
if held then
  local epoch = string.match(held, '|(.*)$')
  if epoch and newer(epoch, ARGV[3]) then return {0, held} end
elseif redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[4]) then
  return {2}
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. '|' .. ARGV[3])
return {1, held}
