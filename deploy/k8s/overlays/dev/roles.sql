CREATE ROLE points LOGIN PASSWORD 'dev-only';
CREATE ROLE points_owner LOGIN PASSWORD 'dev-only-owner';
CREATE DATABASE points OWNER points_owner;
CREATE ROLE cards LOGIN PASSWORD 'dev-only';
CREATE ROLE cards_owner LOGIN PASSWORD 'dev-only-owner';
CREATE DATABASE cards OWNER cards_owner;
CREATE ROLE groups LOGIN PASSWORD 'dev-only';
CREATE ROLE groups_owner LOGIN PASSWORD 'dev-only-owner';
CREATE DATABASE groups OWNER groups_owner;
