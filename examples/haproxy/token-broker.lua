-- Asks the token broker whether a request may go on. Read docs/howto/behind-haproxy.md.

-- What comes from the broker, or not at all. Add the fields that your routes set.
local COPIED = { "authorization", "cookie", "x-user" }
-- What an answer to the caller is made of.
local TOLD = { "content-type", "cache-control", "location", "retry-after", "www-authenticate", "x-request-id" }
-- What belongs to the connection, and not to the question.
local NOT_ASKED = {
    ["connection"] = true, ["content-length"] = true, ["expect"] = true, ["host"] = true, ["keep-alive"] = true,
    ["proxy-connection"] = true, ["te"] = true, ["trailer"] = true, ["transfer-encoding"] = true, ["upgrade"] = true,
}

local url = assert(os.getenv("TOKEN_BROKER_URL"), "TOKEN_BROKER_URL is not set") .. "/bff/auth"
local path = assert(os.getenv("TOKEN_BROKER_SECRET_FILE"), "TOKEN_BROKER_SECRET_FILE is not set")
local file = assert(io.open(path))
local secret = assert(file:read("l"), "the secret is empty")
file:close()

-- HAProxy counts a field's values from 0.
local function values(field)
    local list, index = {}, 0
    while field[index] do
        list[#list + 1] = field[index]
        index = index + 1
    end
    return list
end

local function refuse(txn, status, headers, body)
    local reply = txn:reply({ status = status, body = body or "" })
    for name, value in pairs(headers) do
        reply:add_header(name, value)
    end
    txn:done(reply)
end

core.register_action("token_broker", { "http-req" }, function(txn)
    local asked = {
        ["x-gateway-secret"] = { secret },
        ["x-original-method"] = { txn.f:method() },
        ["x-original-uri"] = { txn.f:pathq() },
    }
    for name, field in pairs(txn.http:req_get_headers()) do
        if name == "host" then
            asked[name] = values(field)
        elseif not NOT_ASKED[name] and not asked[name] then
            asked[name] = values(field)
        end
    end

    local answer = core.httpclient():get({ url = url, headers = asked, timeout = 15000 })
    if not answer or not answer.status or answer.status == 0 then
        return refuse(txn, 503, { ["Retry-After"] = "5" })
    end
    if answer.status ~= 202 then
        local told = {}
        for _, name in ipairs(TOLD) do
            if answer.headers[name] then
                told[name] = values(answer.headers[name])[1]
            end
        end
        return refuse(txn, answer.status, told, answer.body)
    end
    for _, name in ipairs(COPIED) do
        txn.http:req_del_header(name)
        local field = answer.headers[name]
        if field then
            txn.http:req_set_header(name, values(field)[1])
        end
    end
end)
