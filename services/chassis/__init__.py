"""What any service needs and no service is about: functions that a service calls, never a framework."""
