// Shim: which members this release of the headers has.
//
// Use the traits only inside of templates, with `if constexpr`, so that what is missing is never compiled.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

#define CUELIGHT_DETECT(Name, ...)                                                                                     \
    template <class T, class = void>                                                                                   \
    struct Name : std::false_type                                                                                      \
    {                                                                                                                  \
    };                                                                                                                 \
    template <class T>                                                                                                 \
    struct Name<T, std::void_t<decltype(__VA_ARGS__)>> : std::true_type                                                \
    {                                                                                                                  \
    }

namespace cuelight::trtllm
{
CUELIGHT_DETECT(HasPromptIgnoreLength, std::declval<T&>().setPromptIgnoreLength(std::optional<std::int32_t>{}));
CUELIGHT_DETECT(HasMooncake, T::MOONCAKE);
CUELIGHT_DETECT(HasStaticBatch, T::kSTATIC_BATCH);
CUELIGHT_DETECT(HasTransferTimeout, std::declval<T&>().setKvTransferTimeoutMs(std::optional<int>{}));
CUELIGHT_DETECT(
    HasSenderFutureTimeout, std::declval<T&>().setKvTransferSenderFutureTimeoutMs(std::optional<int>{}));
CUELIGHT_DETECT(HasPollInterval, std::declval<T&>().setKvTransferPollIntervalMs(std::optional<int>{}));
CUELIGHT_DETECT(HasCtxDpRank, std::declval<T&>().setCtxDpRank(std::declval<T const&>().getCtxDpRank()));
CUELIGHT_DETECT(
    HasEndpoint, std::declval<T&>().setDisaggInfoEndpoint(std::declval<T const&>().getDisaggInfoEndpoint()));
CUELIGHT_DETECT(HasDisaggRequestId, std::declval<T&>().setDisaggRequestId(std::uint64_t{}));
CUELIGHT_DETECT(HasCacheSalt, std::declval<T&>().setCacheSaltID(std::uint64_t{}));
CUELIGHT_DETECT(HasCacheSaltText, std::declval<T&>().setCacheSalt(std::optional<std::string>{}));
CUELIGHT_DETECT(HasMaxGpuTotalBytes, std::declval<T&>().setMaxGpuTotalBytes(std::uint64_t{}));
CUELIGHT_DETECT(HasUseUvm, std::declval<T&>().setUseUvm(true));
CUELIGHT_DETECT(HasFailFast, std::declval<T&>().setFailFastOnAttentionWindowTooLarge(true));
CUELIGHT_DETECT(HasTrtOverlap, std::declval<T&>().setEnableTrtOverlap(true));
CUELIGHT_DETECT(HasPromptTableOffloading, std::declval<T&>().setPromptTableOffloading(true));
CUELIGHT_DETECT(HasNumNodes, std::declval<T&>().setNumNodes(std::int32_t{}));
CUELIGHT_DETECT(HasMissedBlocks, std::declval<T&>().missedBlocks);
CUELIGHT_DETECT(HasMmKeys, std::declval<T&>().mmKeys.size());
CUELIGHT_DETECT(HasDraftStats, std::declval<T&>().specDecodingStats);
CUELIGHT_DETECT(HasDpRank, std::declval<T&>().attentionDpRank);
CUELIGHT_DETECT(HasDraftMetrics, std::declval<T&>().speculativeDecoding.totalDraftTokens);
} // namespace cuelight::trtllm
