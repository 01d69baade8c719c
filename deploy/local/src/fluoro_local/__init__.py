"""Fluoro on one machine: embedded PostgreSQL and Valkey and every service under one supervisor."""
