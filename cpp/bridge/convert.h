// Bridge: from the values of ffi.rs to the shim's.
#pragma once

#include "cuelight/src/engine/trtllm/ffi.rs.h"

namespace cuelight::trtllm::ffi
{
trtllm::EngineOptions shimOptions(EngineOptions const& from);
trtllm::RequestOptions shimRequest(RequestOptions const& from);

template <class From>
auto maybe(From const& from) -> std::optional<decltype(from.value)>
{
    return from.some ? std::optional(from.value) : std::nullopt;
}

inline std::optional<std::string> maybe(OptStr const& from)
{
    return from.some ? std::optional(std::string(from.value)) : std::nullopt;
}

template <class T>
std::vector<T> list(rust::Vec<T> const& from)
{
    return {from.begin(), from.end()};
}

inline std::vector<std::string> texts(rust::Vec<rust::String> const& from)
{
    std::vector<std::string> to;
    for (auto const& text : from)
    {
        to.emplace_back(text);
    }
    return to;
}

// Replaces what was there and keeps the allocation.
template <class T>
void put(std::vector<T> const& from, rust::Vec<T>& to)
{
    to.clear();
    to.reserve(from.size());
    for (auto const& item : from)
    {
        to.push_back(item);
    }
}
} // namespace cuelight::trtllm::ffi
