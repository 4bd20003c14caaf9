// The three roles, and the one that is for the whole subscription.
targetScope = 'subscription'

@description('Object id of the identity.')
param principalId string

var roles = {
  cluster: loadJsonContent('../roles/cluster.json')
  nodes: loadJsonContent('../roles/nodes.json')
  subscription: loadJsonContent('../roles/subscription.json')
}

resource definitions 'Microsoft.Authorization/roleDefinitions@2022-04-01' = [
  for role in items(roles): {
    name: guid(subscription().id, role.value.Name)
    properties: {
      roleName: role.value.Name
      description: role.value.Description
      type: 'CustomRole'
      permissions: [{ actions: role.value.Actions }]
      assignableScopes: [subscription().id]
    }
  }
]

resource assignment 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(subscription().id, principalId, 'subscription')
  properties: {
    principalId: principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', guid(subscription().id, roles.subscription.Name))
  }
  dependsOn: [definitions]
}

output clusterRole string = subscriptionResourceId('Microsoft.Authorization/roleDefinitions', guid(subscription().id, roles.cluster.Name))
output nodesRole string = subscriptionResourceId('Microsoft.Authorization/roleDefinitions', guid(subscription().id, roles.nodes.Name))
