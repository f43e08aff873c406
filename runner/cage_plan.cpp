// SPDX-License-Identifier: Apache-2.0
#include "runner/cage_plan.h"

namespace attest {

Json to_json(const CagePlan& plan) {
  Json mounts = Json::array();
  for (const CagePlan::Mount& mount : plan.mounts) {
    mounts.push_back({{"from", mount.from}, {"to", mount.to}, {"optional", mount.optional}, {"closed", mount.closed}});
  }
  Json copies = Json::array();
  for (const CagePlan::Copy& copy : plan.copies) {
    copies.push_back({{"from", copy.from},
                      {"text", copy.text},
                      {"to", copy.to},
                      {"executable", copy.executable},
                      {"optional", copy.optional}});
  }
  return {{"parent", plan.parent},
          {"status", plan.status},
          {"groups", plan.groups},
          {"bubblewrap", plan.bubblewrap},
          {"uid", plan.uid},
          {"filter", plan.filter},
          {"may_fork", plan.may_fork},
          {"limited", plan.limited},
          {"cpu_seconds", plan.cpu_seconds},
          {"processes", plan.processes},
          {"file_bytes", plan.file_bytes},
          {"data_bytes", plan.data_bytes},
          {"tmpfs_bytes", plan.tmpfs_bytes},
          {"mounts", std::move(mounts)},
          {"copies", std::move(copies)},
          {"command", plan.command}};
}

CagePlan cage_plan_from_json(const Json& json) {
  CagePlan plan;
  Fields fields(json, "plan");
  plan.parent = fields.required<int64_t>("parent");
  plan.status = fields.required<std::string>("status");
  plan.groups = fields.required<std::vector<std::string>>("groups");
  plan.bubblewrap = fields.required<std::string>("bubblewrap");
  plan.uid = fields.required<int64_t>("uid");
  plan.filter = fields.required<bool>("filter");
  plan.may_fork = fields.required<bool>("may_fork");
  plan.limited = fields.required<bool>("limited");
  plan.cpu_seconds = fields.required<int64_t>("cpu_seconds");
  plan.processes = fields.required<int64_t>("processes");
  plan.file_bytes = fields.required<int64_t>("file_bytes");
  plan.data_bytes = fields.required<int64_t>("data_bytes");
  plan.tmpfs_bytes = fields.required<int64_t>("tmpfs_bytes");
  plan.mounts = fields.list("mounts", [](const Json& item, const std::string& place) {
    Fields mount(item, place);
    CagePlan::Mount made{mount.required<std::string>("from"), mount.required<std::string>("to"),
                         mount.required<bool>("optional"), mount.required<bool>("closed")};
    mount.finish();
    return made;
  });
  plan.copies = fields.list("copies", [](const Json& item, const std::string& place) {
    Fields copy(item, place);
    CagePlan::Copy made{copy.required<std::string>("from"), copy.required<std::string>("text"),
                        copy.required<std::string>("to"), copy.required<bool>("executable"),
                        copy.required<bool>("optional")};
    copy.finish();
    return made;
  });
  plan.command = fields.required<std::vector<std::string>>("command");
  fields.finish();
  if (plan.command.empty()) throw Error::at("plan.command", "is empty");
  return plan;
}

}  // namespace attest
