output "client_id" {
  description = "The chart wants it as azure.clientId."
  value       = azurerm_user_assigned_identity.spotpool.client_id
}
