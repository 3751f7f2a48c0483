# `make help` lists what there is.

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -ec
.DEFAULT_GOAL := build

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
FUZZTIME ?= 30s
PKG ?= ./...

# The demonstration reads these from its environment, where no shell quotes them.
export IMAGE RUN

.PHONY: help build demo test peak compat interop minio interop-minio race fuzz lint bench bench-peers clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

build: ## bin/rafsd, one static binary
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/rafsd ./cmd/rafsd

demo: build ## boot a virtual machine from an image that nobody has pulled [IMAGE=... RUN="..." LATENCY=20ms RATE=50]
	@go run ./e2e/demo -bin bin/rafsd $(if $(LATENCY),-latency $(LATENCY)) $(if $(RATE),-rate $(RATE))

test: ## all tests; ends with what was skipped and why [PKG=./rafs/...]
	@go build -o bin/summary ./e2e/summary
	@go test -json -timeout 20m $(PKG) | bin/summary

peak: ## how much memory commands take for images of half a million entries [ENTRIES=500000]
	RAFSD_ENTRIES=$(or $(ENTRIES),500000) go test -count=1 -timeout 60m -v -run '^TestPeakMemory$$' ./cmd/rafsd

# Modules of their own, for what they import is needed by nothing else here.
compat: ## what the packages of nydus-snapshotter say of our images
	go -C rafs/convert/snapshottercompat test -count=1 -timeout 20m ./...

# The tests with the tag "peers", by name: the others have run without it.
interop: ## what nydusd, nydus-image and virtiofsd say of what we make, and we of what they make (after make bench-peers)
	@files=$$(git grep -l '^//go:build peers' -- '*_test.go'); \
	names=$$(sed -nE 's/^func (Test[A-Za-z0-9_]+)\(t .*/\1/p' $$files | sort -u | paste -sd '|'); \
	go test -count=1 -timeout 20m -tags peers -run "^($$names)$$" $$(dirname $$files | sort -u | sed 's,^,./,')

# MinIO's license is the AGPL: it is a program that tests talk to, and nothing links it.
minio: ## install the MinIO server into Go's bin folder, for interop-minio (about five minutes)
	go install github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c

interop-minio: ## what a MinIO server takes and gives of blobs in buckets (after make minio)
	PATH="$$(go env GOPATH)/bin:$$PATH" go test -count=1 -timeout 20m -tags minio -run '^TestMinIO$$' ./rafs/blob/backend/s3 ./rafs/convert

race: ## all tests but those with virtual machines, with the race detector (needs a C compiler)
	CGO_ENABLED=1 go test -race -timeout 20m $$(go list ./... | grep -v /e2e)

fuzz: ## each fuzz target for FUZZTIME=30s [FUZZTIME=10m]
	@for pkg in $$(go list ./...); do \
		for target in $$(go test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
			echo "$$pkg $$target"; \
			go test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) $$pkg; \
		done; \
	done

lint: ## gofmt, go vet, staticcheck
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$unformatted" ]; then echo "not gofmt'd: $$unformatted"; exit 1; fi
	go vet ./...
	go tool staticcheck ./...

bench: build ## compare with the daemons and the nydus-image that are installed; docs/benchmarks.md says how to read it [BENCHFLAGS="-rounds 3"]
	go run ./e2e/bench -rafsd bin/rafsd $(BENCHFLAGS)

bench-peers: ## install nydusd, nydus-image and virtiofsd, which bench compares with (cargo, about eight minutes)
	sh e2e/bench/peers.sh

clean: ## remove what build made; the cache of kernels and images stays
	rm -rf bin
