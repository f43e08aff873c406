// SPDX-License-Identifier: Apache-2.0
#include "runner/fuzz/targets.h"
#include "runner/worker_client.h"

// The first byte says what was asked: 'o'pen, 'r'un, run_'t'ogether of two plans, or anything else.
void attest::fuzz::replies(std::string_view bytes) {
  if (bytes.empty()) return;
  const auto json = protocol::parse_payload(bytes.substr(1));
  if (!json) return;
  const auto check = [](const Reply& reply) {
    want(protocol::name_of(reply.status).has_value(), "a reply's status is one");
    want(reply.message.size() <= protocol::kMaxMessage, "a reply's message keeps to its limit");
    want(reply.seconds >= 0, "a reply's time is no less than none");
    want(!Json(reply.message).dump().empty(), "a reply's message is UTF-8");
  };
  try {
    switch (bytes[0]) {
      case 'o': {
        const Opened opened = opened_from_json(*json);
        check(opened.reply);
        want(opened.declarations.is_object(), "declarations are an object");
        break;
      }
      case 't':
        for (const Reply& reply : replies_from_json(*json, 2)) check(reply);
        break;
      default:
        check(reply_from_json(*json, bytes[0] == 'r'));
    }
  } catch (const Error&) {
  }
}
