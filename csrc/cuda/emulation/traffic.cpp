#if defined(NNOPS_CUDA_CHECKED)  // for check mode alone

#include "cuda/emulation/traffic.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>

namespace nnops::emulation {

std::string Traffic::wanted_file() {
  const char* path = std::getenv("NNOPS_CUDA_TRAFFIC");
  return path == nullptr ? "" : path;
}

void Traffic::access(int thread, Place place, bool shared, bool writes, uintptr_t address,
                     unsigned bytes) {
  Record& record = records_[{kernel_, place.key(), shared, writes, bytes}];
  record.place = place;
  Requests& warp = record.warps[static_cast<size_t>(thread / 32)];
  const size_t lane = static_cast<size_t>(thread % 32);
  const size_t number = warp.done[lane]++;
  if (number == warp.requests.size()) warp.requests.emplace_back();
  warp.requests[number].lanes |= 1u << lane;
  warp.requests[number].addresses[lane] = address;
}

void Traffic::meet() {
  for (auto& [key, record] : records_) {
    if (std::strcmp(key.kernel, kernel_) != 0) continue;
    for (Requests& warp : record.warps) {
      for (const Request& request : warp.requests) count(key, request, record.counts);
      warp.requests.clear();
      std::fill_n(warp.done, 32, 0);
    }
  }
}

void Traffic::count(const Key& key, const Request& request, Counts& counts) {
  ++counts.requests;
  counts.lanes += __builtin_popcount(request.lanes);
  if (key.shared) {
    const int lanes_at_once = key.bytes <= 4 ? 32 : key.bytes == 8 ? 16 : 8;
    for (int first = 0; first < 32; first += lanes_at_once) {
      std::set<uintptr_t> words[32];
      size_t busiest = 0;
      for (int lane = first; lane < first + lanes_at_once; ++lane) {
        if (!(request.lanes >> lane & 1)) continue;
        const uintptr_t end = request.addresses[lane] + key.bytes;
        for (uintptr_t word = request.addresses[lane] / 4; 4 * word < end; ++word) {
          words[word % 32].insert(word);
          busiest = std::max(busiest, words[word % 32].size());
        }
      }
      counts.units += static_cast<int64_t>(busiest);
      counts.least_units += busiest > 0;
    }
    return;
  }
  std::set<uintptr_t> bytes, sectors;
  for (int lane = 0; lane < 32; ++lane) {
    if (!(request.lanes >> lane & 1)) continue;
    for (unsigned i = 0; i < key.bytes; ++i) {
      bytes.insert(request.addresses[lane] + i);
      sectors.insert((request.addresses[lane] + i) / 32);
    }
  }
  counts.units += static_cast<int64_t>(sectors.size());
  counts.least_units += static_cast<int64_t>((bytes.size() + 31) / 32);
}

void Traffic::write() const {
  FILE* const file = std::fopen(file_.c_str(), "a");
  if (file == nullptr) return;
  // Instantiations of a template, and copies of a place that the compiler made, together.
  std::map<std::string, Counts> lines;
  std::map<int32_t, std::string> places;
  for (const auto& [key, record] : records_) {
    std::string& place = places[key.place];
    if (place.empty()) place = record.place.text();
    Counts& sum = lines['"' + std::string(key.kernel) + "\",\"" + place + "\"," +
                        (key.shared ? "shared," : "global,") + (key.writes ? "write," : "read,") +
                        std::to_string(key.bytes)];
    sum.requests += record.counts.requests;
    sum.lanes += record.counts.lanes;
    sum.units += record.counts.units;
    sum.least_units += record.counts.least_units;
  }
  for (const auto& [line, counts] : lines) {
    std::fprintf(file, "%s,%lld,%lld,%lld,%lld\n", line.c_str(),
                 static_cast<long long>(counts.requests), static_cast<long long>(counts.lanes),
                 static_cast<long long>(counts.units), static_cast<long long>(counts.least_units));
  }
  std::fclose(file);
}

}  // namespace nnops::emulation

#endif  // NNOPS_CUDA_CHECKED
