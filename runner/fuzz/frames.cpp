// SPDX-License-Identifier: Apache-2.0
#include <sys/socket.h>

#include <array>

#include "runner/fuzz/targets.h"
#include "runner/protocol.h"

void attest::fuzz::frames(std::string_view bytes) {
  std::array<int, 2> ends{};
  want(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) == 0, "there is a socket");
  const UniqueFd near(ends[0]);
  {
    const UniqueFd far(ends[1]);
    // What does not fit into the socket's buffer is not there: nobody reads meanwhile.
    [[maybe_unused]] const ssize_t sent = ::send(far.get(), bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  }
  const protocol::Wait wait = protocol::wait_forever(near.get());
  while (true) {
    UniqueFd passed;
    const auto payload = protocol::receive_frame(near.get(), wait, &passed);
    if (!payload) break;
    want(payload->size() <= protocol::kMaxPayload, "a frame keeps to the limit");
    const auto json = protocol::parse_payload(*payload);
    want(!json || json->is_object(), "a payload is an object");
  }
  for (const bool lines : {false, true}) {
    const std::string text = protocol::printable(bytes, 300, lines);
    want(text.size() <= 300, "printable text keeps to its limit");
    want(protocol::printable(text, 300, lines) == text, "printable text is printable");
    // A JSON writer in its strict mode refuses what is no UTF-8, with an exception that nobody catches here.
    want(!Json(text).dump().empty(), "printable text is UTF-8");
  }
}
