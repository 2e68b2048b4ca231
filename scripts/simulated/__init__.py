"""Simulated hosts: several machines for Ansible on one, made of namespaces."""
