-- How Argo CD sees a SpotPool. In argocd-cm this is the value of resource.customizations.health.spotpool.dev_SpotPool.
local health = {status = "Progressing", message = "no operator has looked at it yet"}

if obj.metadata.deletionTimestamp ~= nil then
  health.message = "it is being deleted"
  return health
end
if obj.spec.suspend == true then
  health.status = "Suspended"
  health.message = "spec.suspend is true"
  return health
end
if obj.status == nil or obj.status.conditions == nil then
  return health
end
if (obj.status.observedGeneration or 0) < obj.metadata.generation then
  health.message = "the operator has not looked at its last change yet"
  return health
end

local conditions = {}
for _, condition in ipairs(obj.status.conditions) do
  conditions[condition.type] = condition
end
local function is(kind, status)
  return conditions[kind] ~= nil and conditions[kind].status == status
end

if is("Stalled", "True") then
  health.status = "Degraded"
  health.message = conditions["Stalled"].message
elseif is("Ready", "True") then
  health.status = "Healthy"
  health.message = conditions["Ready"].message
elseif is("Reconciling", "True") then
  health.message = conditions["Reconciling"].message
elseif is("Ready", "False") then
  -- Less is ready than is wanted, and nothing is under way.
  health.status = "Degraded"
  health.message = conditions["Ready"].message
end
return health
