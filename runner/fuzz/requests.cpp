// SPDX-License-Identifier: Apache-2.0
// The worker's own file is compiled into this one: what answers requests is nobody else's business.
#define main attest_worker_main
#include "runner/worker_main.cpp"
#undef main

#include "runner/fuzz/targets.h"

namespace {

constexpr int64_t kBytes = 65536;  // what a request's "bytes" must say

attest::UniqueFd shared_memory() {
  attest::UniqueFd memory(::memfd_create("fuzz", MFD_CLOEXEC));
  attest::fuzz::want(memory && ::ftruncate(memory.get(), kBytes) == 0, "there is a memfd");
  return memory;
}

// Whatever library a request names, it gets one of ours: loading any other is what a worker is there for.
void use_our_backend(attest::Json& request) {
  const auto library = request.find("library");
  if (library == request.end() || !library->is_string()) return;
  const bool device = library->get_ref<const std::string&>().find("device") != std::string::npos;
  *library = device ? ATTEST_FUZZ_DEVICE_BACKEND : ATTEST_FUZZ_BACKEND;
}

}  // namespace

void attest::fuzz::requests(std::string_view bytes) {
  static const UniqueFd memory = shared_memory();
  static const UniqueFd none;
  Session session;
  while (!bytes.empty() && !session.closed()) {
    const size_t line = std::min(bytes.find('\n'), bytes.size());
    auto request = protocol::parse_payload(bytes.substr(0, line));
    bytes.remove_prefix(std::min(line + 1, bytes.size()));
    if (!request) continue;
    use_our_backend(*request);
    const Json reply = session.answer(*request, request->contains("no_memory") ? none : memory);
    want(reply.contains(field::status) && reply.contains(field::message), "a reply has a status and a message");
    want(protocol::status_named(reply.at(field::status).get<std::string>()).has_value(), "a reply's status is one");
    want(!reply.dump(-1, ' ', false, Json::error_handler_t::replace).empty(), "a reply can be sent");
  }
}
